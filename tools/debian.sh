#!/usr/bin/env bash
# Debian packages that PyPI does not have. `make test` and `make cocotb` call this; it installs what is missing where it may, and
# says what is left out where it may not.
#   iverilog               the second simulator of the cocotb testbenches
#   dataset-fashion-mnist  the images that training takes (make data)
set -u
missing=()
for package in "$@"; do
  dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}"; } >/dev/null 2>&1 && exit 0
fi
echo "seriatim: without ${missing[*]} (apt-get install ${missing[*]}, as root): what needs it is left out" >&2
