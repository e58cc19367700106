#!/usr/bin/env bash
# Fails if a program that draws with the library locks 300 packages or more (docs/drawing.md).
set -euo pipefail
cd "$(dirname "$0")/.."

readonly MOST=299
user=$(mktemp -d)
trap 'rm -r "$user"' EXIT
mkdir "$user/src"
echo 'fn main() {}' >"$user/src/main.rs"
cat >"$user/Cargo.toml" <<EOF
[package]
name = "user"
version = "0.0.0"
edition = "2024"
[dependencies]
tessera-model = { path = "$PWD/crates/model", features = ["embedded"] }
[workspace]
EOF
# The versions of this workspace, so that the count depends on nothing else.
cp Cargo.lock "$user/Cargo.lock"
cargo metadata --quiet --format-version 1 --manifest-path "$user/Cargo.toml" >/dev/null
locked=$(grep --count '^\[\[package\]\]' "$user/Cargo.lock")
[ "$locked" -le "$MOST" ] || { echo "packaging: a program with the library locks $locked packages, wanted at most $MOST" >&2; exit 1; }
echo "a program with the library locks $locked packages"
