#!/usr/bin/env bash
# Builds the archives of a release for Linux on x86-64: one that uses the system's glibc, and one
# that is static, with musl.
#
#   packaging/dist.sh                                # both, or: make dist
#   packaging/dist.sh x86_64-unknown-linux-musl      # one of them
#
# It writes target/dist/tessera-VERSION-TARGET.tar.gz and SHA256SUMS. docs/releasing.md lists the
# tools that it needs.
set -euo pipefail
cd "$(dirname "$0")/.."

die() { echo "dist: $*" >&2; exit 1; }

targets=("$@")
[ $# -gt 0 ] || targets=(x86_64-unknown-linux-gnu x86_64-unknown-linux-musl)
built=${CARGO_TARGET_DIR:-target}
out=$built/dist
sysroot=$(rustc --print sysroot)
version=$(cargo pkgid --package tessera-cli)
version=${version##*[@#]}

# Checks that everything a build needs is installed, before anything slow.
command -v cargo-about >/dev/null || die "cargo-about is missing: cargo install --locked --features cli cargo-about"
for target in "${targets[@]}"; do
    [ -d "$sysroot/lib/rustlib/$target" ] || die "no standard library for $target: rustup target add $target"
    case $target in
        x86_64-*-musl) command -v musl-gcc >/dev/null || die "musl-gcc is missing: apt-get install musl-tools" ;;
        x86_64-*-gnu) ;;
        *) die "$target: only x86_64-unknown-linux-gnu and x86_64-unknown-linux-musl are built" ;;
    esac
done

# The program runs on every x86-64 processor and chooses its kernels when it starts. It does not
# contain paths of the machine that built it.
flags=(-C target-cpu=x86-64 "--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo" "--remap-path-prefix=$PWD=/tessera")
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f' && echo "${flags[*]}")
export CARGO_ENCODED_RUSTFLAGS

rm -rf "$out"
mkdir -p "$out"

# Collects the licences of everything that the archives contain.
licences=$out/licences
mkdir "$licences"
cp LICENSE-MIT LICENSE-APACHE packaging/NOTICE.txt "$licences"
cp "$sysroot/share/doc/rust/COPYRIGHT-library.html" "$licences/RUST-STANDARD-LIBRARY.html"
cp "$sysroot/share/doc/rust/licenses/"{GPL-3.0-or-later,OFL-1.1}.txt "$licences"
echo "dist: collects the licences of all crates (minutes)"
cargo about generate --locked --manifest-path crates/cli/Cargo.toml --config packaging/about.toml \
    --output-file "$licences/THIRD-PARTY.txt" packaging/about.hbs

# check PROGRAM: prints the program's version, and draws a picture with it.
check() {
    "$1" --version
    "$1" --quiet draw "a red apple" --seed 1 -n 1 --out "$out/check.png"
    [ "$(wc -c <"$out/check.png")" -gt 1000 ] || die "$1 drew nothing"
    rm "$out/check.png"
}

# needs TARGET PROGRAM: prints the newest glibc version that the program needs, or checks that it is
# static.
needs() {
    case $1 in
        *-musl) ! readelf --dynamic "$2" | grep -q NEEDED || die "$2 is not static" ;;
        *) echo "dist: $2 needs $(objdump -T "$2" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1)" ;;
    esac
}

# pack TARGET: makes the archive of one target.
pack() {
    local name=tessera-$version-$1
    local dir=$out/$name
    mkdir -p "$dir/completions" "$dir/man/man1"
    cp "$built/$1/release/tessera" "$dir/tessera"
    strip "$dir/tessera"
    needs "$1" "$dir/tessera"
    check "$dir/tessera"
    "$dir/tessera" completions bash >"$dir/completions/tessera.bash"
    "$dir/tessera" completions zsh >"$dir/completions/_tessera"
    "$dir/tessera" completions fish >"$dir/completions/tessera.fish"
    "$dir/tessera" man "$dir/man/man1"
    cp README.md CHANGELOG.md "$dir"
    cp crates/pretrained/CARD.md "$dir/MODEL-CARD.md"
    cp -r "$licences" "$dir/licences"
    # The same commit always gives the same bytes.
    tar --create --directory "$out" --sort=name --owner=0 --group=0 --numeric-owner \
        --mtime="@$(git log -1 --format=%ct)" "$name" | gzip -9 --no-name >"$out/$name.tar.gz"
    rm -r "$dir"
}

for target in "${targets[@]}"; do
    cargo build --release --locked --package tessera-cli --target "$target"
    pack "$target"
done
rm -r "$licences"
(cd "$out" && sha256sum ./*.tar.gz | sed 's, \./, ,' >SHA256SUMS)
echo "dist: $out"
ls -l "$out"
