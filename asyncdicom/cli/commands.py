"""The commands as they are typed: names, arguments, and the words of their help. What they do is imported when they do it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from asyncdicom.cli.options import ASKING, FORM, KEYS, RETRIEVAL, Asking, Flag, Form, Keys, Level, Retrieval, Targets

Model = Literal["patient", "study", "worklist"]


def echo(
    *targets: Targets,
    all: Annotated[Flag, Parameter(help="Every modality of the configuration.")] = False,
    watch: Annotated[Flag, Parameter(help="Repeat until Ctrl-C; a live table on a terminal.")] = False,
    every: Annotated[float, Parameter(metavar="SECONDS", help="With --watch, from start to start.")] = 5.0,
    asking: Asking = ASKING,
    form: Form = FORM,
) -> int:
    """Ask whether targets answer: C-ECHO, many at once.

    Each is asked once, over an association of its own.

    For example:

        asyncdicom echo PACS@10.1.2.3:11112
        asyncdicom echo --all
        asyncdicom echo @scanners pacs --watch
        asyncdicom echo --all --json --deadline 5 | jq -r 'select(.ok | not) | .modality'
    """
    from asyncdicom.cli.echo import echo as command

    return command(("@all", *targets) if all else targets, every if watch else None, asking, form)


def find(
    *targets: Targets,
    key: Keys = KEYS,
    level: Annotated[Level | None, Parameter(help="What a match is. Default: study.")] = None,
    model: Annotated[Model | None, Parameter(help="Information model. Default: study, or patient for --level patient.")] = None,
    limit: Annotated[int | None, Parameter(metavar="N", help="Stop the archives after so many matches.")] = None,
    merge: Annotated[Flag, Parameter(help="Give what several archives hold once, when all have answered.")] = False,
    relational: Annotated[Flag, Parameter(help="Ask for relational queries.")] = False,
    fuzzy: Annotated[Flag, Parameter(help="Ask for fuzzy matching of person names.")] = False,
    datetime: Annotated[Flag, Parameter(help="Ask that date and time match as one.")] = False,
    timezone: Annotated[Flag, Parameter(help="Ask for time zone adjustment.")] = False,
    asking: Asking = ASKING,
    form: Form = FORM,
) -> int:
    """Ask archives and worklists what they hold: C-FIND.

    Matches come as they are found. With --json each is a DICOM JSON model object with "_source", the names of who gave it; the
    last line is {"_summary": {...}}.

    For example:

        asyncdicom find pacs -k PatientID=123 -k StudyDate=20260101- -k StudyDescription
        asyncdicom find @archives --merge -k StudyDate=20260110 --json > matches.ndjson
        asyncdicom find ris --model worklist -k Modality=CT -k ScheduledProcedureStepStartDate=20260110 -k PatientName
        asyncdicom find PACS@10.1.2.3:11112 --level series -k StudyInstanceUID=1.2.3 -k Modality --csv
    """
    from asyncdicom.cli.find import find as command
    from asyncdicom.cli.keys import Wanted

    wanted = Wanted(key, level, model, relational, fuzzy, datetime, timezone)
    return command(targets, wanted, limit, merge, asking, form)


def move(
    source: Annotated[str, Parameter(help="Whom to ask: a name, @group, or AET@host:port.")],
    /,
    *,
    to: Annotated[
        str, Parameter(metavar="AET", help="Where the instances go: an AE title that the source knows the address of.")
    ],
    retrieval: Retrieval = RETRIEVAL,
    asking: Asking = ASKING,
    form: Form = FORM,
) -> int:
    """Have an archive send what it holds to somebody: C-MOVE.

    What to move is named by keys, or by the matches of an earlier "find --json". Where SOURCE names several archives, each
    match is asked of the one that gave it.

    For example:

        asyncdicom move pacs --to WORKSTATION -k StudyInstanceUID=1.2.3
        asyncdicom find pacs -k StudyDate=20260110 --json | asyncdicom move pacs --to WORKSTATION --from -
    """
    from asyncdicom.cli.retrieve import move as command

    return command(source, to, retrieval, asking, form)


def get(
    source: Annotated[str, Parameter(help="Whom to ask: a name, @group, or AET@host:port.")],
    /,
    *,
    into: Annotated[Path, Parameter(metavar="DIR", help="Folder for the instances; made when it is missing.")],
    durability: Annotated[
        Literal["full", "file", "none"], Parameter(help="What is synced to the disk before an instance counts as received.")
    ] = "file",
    retrieval: Retrieval = RETRIEVAL,
    asking: Asking = ASKING,
    form: Form = FORM,
) -> int:
    """Fetch what an archive holds into a folder: C-GET.

    Files are named STUDY/SERIES/INSTANCE.dcm by their UIDs and hold the bytes exactly as received. What is there already stays.

    For example:

        asyncdicom get pacs --into data -k StudyInstanceUID=1.2.3
        asyncdicom get @archives --into data --from matches.ndjson
    """
    from asyncdicom.cli.retrieve import get as command

    return command(source, into, durability, retrieval, asking, form)


def send(
    target: Annotated[str, Parameter(help="To whom: a name, @group, or AET@host:port.")],
    /,
    *paths: Annotated[Path, Parameter(name="PATH", help="DICOM files, and folders of them.")],
    asking: Asking = ASKING,
    form: Form = FORM,
) -> int:
    """Send files and folders: C-STORE.

    Only the presentation contexts that the files need are proposed, and their bytes are sent as they are.

    For example:

        asyncdicom send PACS@10.1.2.3:11112 study/
        asyncdicom send pacs one.dcm two.dcm --json
    """
    from asyncdicom.cli.send import send as command

    return command(target, paths, asking, form)


def serve(
    *,
    config: Annotated[
        Path | None, Parameter(metavar="FILE", help="Default: asyncdicom.toml here, else $ASYNCDICOM_CONFIG.")
    ] = None,
    log_format: Annotated[Literal["text", "json"], Parameter(help="Form of the log on standard error.")] = "text",
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Parameter(help="Lowest level that is logged.")] = "info",
) -> int:
    """Run the service: storage SCP, archive, sweeps, metrics and pages, as the configuration says.

    SIGTERM and Ctrl-C drain: nothing new is accepted, what is under way is finished. SIGHUP reads the configuration again.

    For example:

        asyncdicom check-config asyncdicom.toml && asyncdicom serve
        asyncdicom serve --config site-a.toml --log-format json
    """
    from asyncdicom.cli.serve import serve as command

    return command(config, log_format, log_level)


def check_config(
    file: Annotated[Path | None, Parameter(help="Default: asyncdicom.toml here, else $ASYNCDICOM_CONFIG.")] = None,
    /,
    *,
    json: Annotated[Flag, Parameter(help="Mistakes as one JSON object a line.")] = False,
) -> int:
    """Check a configuration, and tell every mistake: where, what stands there, what to write instead.

    For example:

        asyncdicom check-config asyncdicom.toml
    """
    from asyncdicom.cli.serve import check_config as command

    return command(file, json)


def hash_passcode(
    name: Annotated[str, Parameter(help="The user name.")],
    /,
) -> int:
    """Make a line for the file of users, [scp] user_identity users_file, from a passcode.

    The passcode is asked for on a terminal, without showing it, or read from standard input: one line.

    For example:

        asyncdicom hash-passcode ct1 >> users
        pass show dicom/ct1 | asyncdicom hash-passcode ct1 >> users
    """
    from asyncdicom.cli.passcode import hash_passcode as command

    return command(name)


def verify(
    *,
    config: Annotated[
        Path | None, Parameter(metavar="FILE", help="Default: asyncdicom.toml here, else $ASYNCDICOM_CONFIG.")
    ] = None,
    json: Annotated[Flag, Parameter(help="Differences as one JSON object a line, and a summary.")] = False,
) -> int:
    """Read the whole archive again, and tell every difference from what was acknowledged.

    Every instance of the index is hashed and compared, and every file is looked for in the index. Nothing is changed, and the
    service may be at work. Exit status 1 when there is a difference.

    For example:

        asyncdicom verify
        asyncdicom verify --config site-a.toml --json | jq -r 'select(.kind == "damaged") | .path'
    """
    from asyncdicom.cli.verify import verify_archive as command

    return command(config, json)


def probe(
    target: Targets,
    /,
    *,
    module: Annotated[
        str, Parameter(metavar="NAME", help="What is asked: echo, find, worklist, store, or a [[probe]] of the configuration.")
    ] = "echo",
    json: Annotated[Flag, Parameter(help="The outcome as one JSON object.")] = False,
    asking: Asking = ASKING,
) -> int:
    """Ask one target, and show what was said on the wire and what /probe would answer.

    find and worklist are a C-ECHO and a C-FIND for today that is stopped at the first match; store is a C-ECHO and a C-STORE
    of a small synthetic instance, for modalities with quirks = { probe_store = true }. [[probe]] makes more of them, with
    other keys, presentation contexts and limits. No dataset is shown.

    For example:

        asyncdicom probe pacs
        asyncdicom probe ris --module worklist
        asyncdicom probe PACS@10.1.2.3:11112 --module find --deadline 5
        asyncdicom probe pacs --module ct-this-week
    """
    from asyncdicom.cli.probe import probe_target as command

    return command(target, module, asking, json)


def simulate(
    *,
    count: Annotated[int, Parameter(metavar="N", help="How many modalities.")] = 10,
    port: Annotated[int, Parameter(metavar="P", help="The port of all of them; 0 takes a free one.")] = 0,
    faults: Annotated[
        str, Parameter(metavar="SPEC", show_default=False, help='What is wrong with how many, such as "silent=5%,refuse=2".')
    ] = "",
    inventory: Annotated[
        Path | None,
        Parameter(metavar="FILE", help="Write the inventory there: .csv, or .toml with TLS. Default: CSV on standard output."),
    ] = None,
    host: Annotated[str, Parameter(help="Address of the first; each of the others has the next one.")] = "127.64.0.1",
    matches: Annotated[int, Parameter(metavar="N", help="Studies that each tells of in answer to C-FIND.")] = 3,
    seed: Annotated[int, Parameter(metavar="N", help="Another seed spreads the faults otherwise.")] = 0,
) -> int:
    """Simulate a fleet of modalities on this machine until Ctrl-C, for sizing and tests.

    They are named sim0001, sim0002 ... and lie in groups by their faults: @simulated, @silent ... A SPEC is a list of
    FAULT=SHARE, where a share is a number or a percentage. Some faults take a parameter: slow:0.5, failure_status:0xA700.

    For example:

        asyncdicom simulate --count 1000 --port 11200 --faults "silent=5%,reject=2%,slow:0.5=10%" --inventory fleet.csv
        asyncdicom echo --all --config fleet.csv
    """
    from asyncdicom.cli.simulate import simulate as command

    return command(count, port, faults, inventory, host, matches, seed)


def demo(
    *,
    for_: Annotated[
        float | None,
        Parameter(name="--for", metavar="SECONDS", help="End after so long, with a verdict. Default: until Ctrl-C."),
    ] = None,
) -> int:
    """Show the service at work, on this machine alone.

    A simulated fleet of healthy and broken modalities, the service that watches it and keeps what it is sent, and senders of
    synthetic studies. Everything lies in a temporary folder, and is gone afterwards.

    For example:

        asyncdicom demo
        asyncdicom demo --for 20
    """
    from asyncdicom.cli.demo import demo as command

    return command(for_)
