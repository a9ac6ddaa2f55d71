#!/usr/bin/env bash
# nbdev 3, which users of the year after have, exports the same package. In the root of a clone; what is checked is what is committed
set -euo pipefail
three=$(mktemp -d)
trap 'rm -rf "$three"' EXIT
python3 -m venv "$three/env"
PIP_NO_COMPILE=1 "$three/env/bin/pip" install -q 'nbdev>=3'
git clone -q . "$three/clone"
cd "$three/clone"
"$three/env/bin/nbdev-export"
git add -AN . && git diff --exit-code --stat
