# shellcheck shell=bash
# What the other scripts share; sourced, not run.

fail() {
  echo "$0: $*" >&2
  exit 1
}

# need COMMAND HINT: stops with a hint when a command is missing, all of them at once by need_done.
MISSING=()
need() {
  command -v "$1" >/dev/null 2>&1 || MISSING+=("$1: $2")
}

need_done() {
  [ "${#MISSING[@]}" -eq 0 ] && return
  echo "$0: missing on this machine:" >&2
  printf '  %s\n' "${MISSING[@]}" >&2
  exit 1
}

need_rust() {
  need cargo "the Rust toolchain, https://rustup.rs"
  need cc "a C compiler, apt-get install gcc libc6-dev"
}

need_python() {
  need python3 "apt-get install python3"
  if command -v python3 >/dev/null 2>&1 && ! python3 -m pip --version >/dev/null 2>&1; then
    MISSING+=("pip: apt-get install python3-pip")
  fi
}
