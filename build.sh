#!/usr/bin/env bash
# All that can be done with this tree, one verb each. Every verb does its own set-up in .venv, without root or compiler.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
lock=$here/appliance/requirements.lock
venv=$here/.venv

usage() {
  cat <<'TEXT'
usage: ./build.sh VERB [arguments]
  demo    the whole line on this computer: set-up, 600 parts, a table (arguments go to `appliance demo`)
  test    the test suite; ends with what stayed dark and why (arguments go to pytest)
  check   ruff, mypy, import directions, belt and alarms against their oracles in 20,000 examples (some minutes)
  kernels the GPU kernels for every Jetson into build/kernels, by pinned compilers, without a GPU
  deb     the Debian package with its parts list and the bundle for updates, into build/deb: --arch amd64|arm64,
          --python 3.10 (JetPack 6.2) ... 3.13; the same tree gives the same bytes; --validate holds the parts list
          against CycloneDX's own schema
  bench   what this machine does: bench reject (a gate's edge against its due time), bench cpu (frame to verdict beside
          the bare engine, OpenVINO and a script), bench gpu (on a CUDA machine), bench sensors (one look at the box)
  image   NVIDIA's Linux_for_Tegra made into a camera box's (sudo ./build.sh image --l4t DIR --jetpack 6.2|7.2): what is
          installed, locked, disabled and flashed; --selftest [pycuda] does it with a stand-in, emulated (some minutes)
  box     the box as a virtual machine: a Debian with the package, its camera, GPIO and USB stick; what is missing is built
          first, some minutes (--build: only that; --all: every kind of stick; other arguments go to pytest)
PYTHON=/path/to/python3.12 ./build.sh VERB takes that interpreter (3.10 to 3.13).
TEXT
}

do_demo() {
  set_up
  exec env PYTHONPATH="$here" "$venv/bin/python" -m appliance demo "$@"
}

do_test() {
  set_up
  cd "$here"
  exec "$venv/bin/python" -m pytest -rs "$@"
}

do_check() {
  set_up
  cd "$here"
  local failed=0                    # one fault does not hide the next
  "$venv/bin/python" -m ruff check . || failed=1
  "$venv/bin/python" -m mypy --strict appliance/{messages,ports,clock}.py appliance/config appliance/reject || failed=1
  "$venv/bin/python" -m pytest -q tests/test_house.py || failed=1
  HYPOTHESIS_PROFILE=thorough "$venv/bin/python" -m pytest -q --timeout 1800 -k AgainstThe tests/reject || failed=1
  return $failed
}

# The compilers are 110 MB to fetch: only here, and only once.
do_kernels() {
  set_up
  cd "$here"
  local generation
  for generation in 12.6 13.0; do
    local folder=$venv/nvrtc/$generation lock=appliance/kernels/nvrtc-$generation.lock
    [[ -f $folder/ready ]] && cmp -s "$lock" "$folder/ready" && continue
    rm -rf "$folder"
    PIP_USER=0 "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --only-binary :all: \
      --require-hashes --no-deps --target "$folder" -r "$lock"
    cp "$lock" "$folder/ready"
  done
  exec "$venv/bin/python" -m calibration.kernels "$venv/nvrtc" -o build/kernels "$@"
}

# On arm64 the GPU's kernels belong to it.
do_deb() {
  set_up
  cd "$here"
  [[ "$* $(uname -m)" != *arm64* && "$* $(uname -m)" != *aarch64 ]] || "$here/build.sh" kernels > /dev/null
  if [[ " $* " == *" --validate "* ]]; then
    fetch_beside cyclonedx tests/box/cyclonedx.lock
    set -- "${@/#--validate/--validate=$venv/bench/cyclonedx}"
  fi
  exec "$venv/bin/python" -m calibration.package "$@"
}

# Kernel, Debian and package are kept in build/box; each is built anew only when what goes into it has changed.
do_box() {
  set_up
  cd "$here"
  "$venv/bin/python" -m tests.box.vm
  [[ ${1:-} == --build ]] && return
  local how=1
  [[ ${1:-} == --all ]] && how=all && shift
  APPLIANCE_BOX=$how exec "$venv/bin/python" -m pytest -rs -s -m machine tests/box "$@"
}

# A root file system is root's, so this runs under sudo. What a stand-in costs: an arm64 Debian, fetched and kept in build/.
do_image() {
  set_up
  cd "$here"
  if [[ ${1:-} == --selftest ]]; then
    shift
    "$here/build.sh" kernels > /dev/null            # they belong to the package
    local what=1
    [[ ${1:-} != pycuda ]] || { what=pycuda; shift; }
    exec env APPLIANCE_ARM64=$what "$venv/bin/python" -m pytest -rs -s tests/box/test_image_emulated.py "$@"
  fi
  exec "$venv/bin/python" -m calibration.image "$@"
}

do_bench() {
  local bench=${1:-}
  [[ $bench == reject || $bench == cpu || $bench == gpu || $bench == sensors ]] \
    || refuse "no bench '$bench'; there is: reject, cpu, gpu, sensors"
  shift
  set_up
  cd "$here"
  case $bench in
    cpu)
      fetch_beside openvino tests/bench/openvino.lock
      set -- --openvino "$venv/bench/openvino" "$@"
      ;;
    gpu) [[ -d build/kernels ]] || refuse "the kernels are not made yet: ./build.sh kernels" ;;
  esac
  exec "$venv/bin/python" -m "tests.bench.bench_$bench" "$@"
}

# What a bench or a check stands beside is no part of the product: fetched here only, and only once.
fetch_beside() {
  local folder=$venv/bench/$1 lock=$2
  [[ -f $folder/ready ]] && cmp -s "$lock" "$folder/ready" && return
  rm -rf "$folder"
  PIP_USER=0 "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --only-binary :all: \
    --require-hashes --no-deps --target "$folder" -r "$lock"
  cp "$lock" "$folder/ready"
}

# ---- set-up -------------------------------------------------------------------------------------------------------

refuse() {
  echo "build.sh: $*" >&2
  exit 2
}

set_up() {
  find_python
  local want
  want="$(sha256sum < "$lock") python $version in $here"
  is_ready "$want" && return
  needs_venv
  exec 9< "${BASH_SOURCE[0]}"       # two calls at once: one makes .venv, the other waits for it
  flock 9
  is_ready "$want" || make_venv "$want"
  exec 9<&-
}

find_python() {
  python=${PYTHON:-python3}
  version=$("$python" -c 'import sys; print("%d.%d.%d" % tuple(sys.version_info[:3]))' 2>/dev/null) ||
    refuse "$python does not start; install Python 3.10 to 3.13 (sudo apt install python3 python3-venv) or name one: PYTHON=/path/to/python3.12 $0"
  case $version in
    3.1[0-3].*) ;;
    *) refuse "$python is Python $version; this needs 3.10 to 3.13. Name another: PYTHON=/path/to/python3.12 $0" ;;
  esac
}

needs_venv() {
  "$python" -c 'import venv, ensurepip' 2>/dev/null ||
    refuse "Python $version here lacks its venv module: sudo apt install python3-venv"
}

is_ready() {
  [[ -x $venv/bin/python && -f $venv/ready && $(< "$venv/ready") == "$1" ]]
}

# The stamp is written last: a set-up that was cut short is thrown away and made anew.
make_venv() {
  echo "build.sh: first call: making .venv with Python $version (a minute or two)" >&2
  rm -rf "$venv"
  "$python" -m venv "$venv"
  install_lock || {
    rm -rf "$venv"
    echo "build.sh: the packages could not be installed (pip's own words are above). Is there a way to the package index?" \
         "A proxy is named by https_proxy, a mirror by PIP_INDEX_URL. Nothing was kept; the same call begins again." >&2
    exit 1
  }
  echo "$1" > "$venv/ready"
}

install_lock() {
  PIP_USER=0 "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
    --only-binary :all: --require-hashes -r "$lock"
}

# ---- the verb -----------------------------------------------------------------------------------------------------

verb=${1:-help}
case $verb in
  demo | test | check | kernels | deb | image | box | bench) shift; "do_$verb" "$@" ;;
  help | -h | --help) usage ;;
  *) usage >&2; refuse "no verb '$verb'" ;;
esac
