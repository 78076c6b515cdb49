"""Ask several archives for the studies of a patient, and print each study once with everybody who holds it.

python examples/find_across_archives.py PACS@10.1.2.3:11112 VNA@10.1.2.4:11112 --patient 123
"""

from __future__ import annotations

import argparse

import anyio

from asyncdicom import Fleet, Modality, Query


async def main(archives: list[Modality], patient: str) -> None:
    query = Query(level="study", keys={"PatientID": patient, "StudyDate": "", "StudyDescription": "", "ModalitiesInStudy": ""})
    async with Fleet(archives, deadline=60.0) as fleet:
        matches = fleet.find(query, merge=True)
        async for match in matches:
            study = match.dataset
            print(study.get("StudyDate", ""), study.get("StudyDescription", ""), study.StudyInstanceUID, *match.sources)
        for outcome in matches.outcomes.values():
            if not outcome.ok:
                # What this archive holds is missing above.
                print(f"{outcome.modality}: {outcome.reason}: {outcome.detail}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Find a patient's studies in several archives.")
    parser.add_argument("archives", nargs="+", type=Modality.parse, metavar="AET@host:port")
    parser.add_argument("--patient", required=True, help="the Patient ID")
    arguments = parser.parse_args()
    anyio.run(main, arguments.archives, arguments.patient)
