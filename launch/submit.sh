#!/usr/bin/env bash
# Search on a cluster of `ray up`:
#
#   launch/submit.sh CLUSTER.yaml SPACE_FILE STUDY_URI [options of csg-ray search]
#
# The same command again goes on with the study, and with a higher --trials it takes more.
# Ctrl-C stops the log, not the job.
set -euo pipefail

if (($# < 3)); then
  echo "usage: launch/submit.sh CLUSTER.yaml SPACE_FILE STUDY_URI [options of csg-ray search]" >&2
  exit 2
fi
cluster=$1 space_file=$2 study=$3
shift 3

ray rsync-up "$cluster" "$space_file" spaces/

# From the head, which has the token and the port: nothing to forward, no version to match.
# Without --working-dir: every node has the code, and a trial needs no file but the study's.
printf -v name %q "$(basename "$space_file")"
printf -v options ' %q' --study "$study" --resume "$@"
ray exec "$cluster" "ray job submit --address http://127.0.0.1:8265 -- \
csg-ray search \"\$HOME\"/spaces/$name$options"
