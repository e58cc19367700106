# The comparison with the peers (benches/peers/README.md). Everything else here is cargo's.
#
#   make peers
#   make peers PEERS="--only gemm,conv --rounds 7"

PYTHON ?= python3.11
PEERS_VENV ?= target/peers-venv
PEERS ?=

.PHONY: peers
peers: $(PEERS_VENV)/installed
	cargo build --release
	$(PEERS_VENV)/bin/python benches/peers/compare.py $(PEERS)

$(PEERS_VENV)/installed: benches/peers/requirements.txt
	$(PYTHON) -m venv $(PEERS_VENV)
	$(PEERS_VENV)/bin/pip install --no-deps --requirement $<
	touch $@
