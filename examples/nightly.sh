#!/bin/sh
# Fetch yesterday's CT studies from every archive of the configuration, each study once, and say what was missed.
#
#   examples/nightly.sh data/nightly
#
# Exit status: 0 when everything was found and fetched, 1 when something was not.
set -u
into=${1:?"usage: nightly.sh DIRECTORY"}
day=${DAY:-$(date -d yesterday +%Y%m%d)}
matches=$(mktemp)
trap 'rm -f "$matches"' EXIT

asyncdicom find @archives --merge --json -k "StudyDate=$day" -k ModalitiesInStudy=CT >"$matches"
found=$?
# Each match says which archives hold it ("_source"), so each study is asked of one that does.
asyncdicom get @archives --into "$into" --from "$matches" --json >"$matches.got"
fetched=$?
tail -n 1 "$matches.got"
rm -f "$matches.got"
[ "$found" -eq 0 ] && [ "$fetched" -eq 0 ]
