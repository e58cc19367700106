#!/usr/bin/env bash
# Checks that the crates compile from what their packages contain, not only from the repository. It
# needs the packages that `cargo package` wrote to target/package.
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(realpath "${CARGO_TARGET_DIR:-target}")
unpacked=$(mktemp -d)
trap 'rm -r "$unpacked"' EXIT
for package in "$target"/package/*.crate; do tar --extract --gzip --file "$package" --directory "$unpacked"; done
cp Cargo.lock "$unpacked"
cd "$unpacked"
crates=(tessera-*/)
{
    printf '[workspace]\nresolver = "3"\nmembers = ["tessera-*"]\n[patch.crates-io]\n'
    # The folder of a package is its name and its version.
    for crate in "${crates[@]%/}"; do echo "${crate%-*} = { path = \"$crate\" }"; done
} >Cargo.toml
CARGO_TARGET_DIR=$target cargo check --quiet --workspace --lib --bins
echo "${#crates[@]} crates compile from their packages"
