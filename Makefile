# What cargo does not do: the comparison with the peers (benches/peers/README.md), and the kernels' tests under valgrind.
#
#   make peers
#   make peers PEERS="--only gemm,conv --rounds 7"
#   make peers-eval PEERS="--pictures 100 --rounds 5"
#   make memcheck

PYTHON ?= python3.11
PEERS_VENV ?= target/peers-venv
PEERS ?=

.PHONY: peers peers-eval memcheck
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
