#!/usr/bin/env bash
# Fetches the emoji packages that `tessera data emoji` renders, at pinned versions, and checks their
# integrity.
#
#   runs/fetch_emoji.sh DIR        writes about 225 MB to DIR; running it again fetches only the
#                                  packages that are missing
#
# It needs npm, tar and openssl. It uses only `npm pack`, which installs nothing and runs no script
# of a package.
set -euo pipefail

die() { echo "fetch_emoji: $*" >&2; exit 2; }
[ $# -eq 1 ] || die "wanted one argument, the folder for the packages: runs/fetch_emoji.sh DIR"
for tool in npm tar openssl; do
  command -v "$tool" >/dev/null || die "$tool is not installed; it is needed to fetch and check the packages"
done
mkdir -p "$1"
dir=$(cd "$1" && pwd)

# Prints the digest of a file in the form that npm publishes.
integrity() { echo "sha512-$(openssl dgst -sha512 -binary "$1" | openssl base64 -A)"; }

# fetch FOLDER PACKAGE VERSION INTEGRITY: writes DIR/FOLDER.tgz, and its content to DIR/FOLDER.
fetch() {
  local folder=$1 package=$2 version=$3 wanted=$4 tgz="$dir/$1.tgz" partial="$dir/.$1.partial"
  rm -rf "$partial"
  if [ ! -f "$tgz" ] || [ "$(integrity "$tgz")" != "$wanted" ]; then
    echo "$package@$version: fetching"
    mkdir "$partial"
    (cd "$partial" && npm pack --silent "$package@$version" >/dev/null) || die "npm cannot fetch $package@$version"
    local got
    got=$(integrity "$partial"/*.tgz)
    [ "$got" = "$wanted" ] || die "$package@$version differs from the pinned package: got $got, wanted $wanted"
    mv "$partial"/*.tgz "$tgz"
    rm -rf "$partial" "${dir:?}/$folder"
  fi
  if [ ! -d "$dir/$folder" ]; then
    mkdir "$partial"
    tar -xzf "$tgz" -C "$partial" --strip-components=1
    mv "$partial" "$dir/$folder"
  fi
  echo "$package@$version: ready in $dir/$folder"
}

fetch noto @iconify-json/noto 1.2.9 \
  sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==
fetch twemoji @iconify-json/twemoji 1.2.5 \
  sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==
fetch fluent-emoji-flat @iconify-json/fluent-emoji-flat 1.2.6 \
  sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==
fetch fluent-emoji @iconify-json/fluent-emoji 1.2.7 \
  sha512-D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==
fetch emojione @iconify-json/emojione 1.2.3 \
  sha512-T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==
fetch fxemoji @iconify-json/fxemoji 1.2.2 \
  sha512-UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==
fetch emojibase-data emojibase-data 17.0.0 \
  sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==
echo "next: tessera data emoji --packages $dir --out OUT"
