# The README's commands. Everything that needs the lab needs root.
VENV := .venv
PYTHON := $(VENV)/bin/python
PACKAGES := python3 python3-venv debootstrap systemd-container bindfs fuse3 nftables tcpdump iproute2 iputils-ping \
            qemu-utils gcc libc6-dev xz-utils git openssh-client util-linux ca-certificates
TOOLS := vagrant vagrant-libvirt ruby
INSTALL = @missing=""; for p in $(1); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	  [ "$$(id -u)" = 0 ] || { echo "run 'make setup' as root, or install:$$missing"; exit 1; }; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
	fi

.PHONY: setup packages tools demo kvm bare test check long soak bench format clean

setup: packages $(VENV)/ready ## what this machine lacks, and the Python environment

packages:
	$(call INSTALL,$(PACKAGES))

tools: ## what only the tests need: Vagrant reads our Vagrantfile
	$(call INSTALL,$(TOOLS))

$(VENV)/ready: pyproject.toml
	python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed"; exit 1; }
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --upgrade pip
	$(VENV)/bin/pip install --quiet -e '.[dev]'
	touch $@

demo: setup ## a host dies silently, its VM's client notices a short pause: the story, and build/demo.json
	$(PYTHON) -m ftkvm.lab.demo

kvm: setup ## bare machines that are virtual, the README's commands for real hosts, the story, ten faults, ten reboots: build/kvm.json
	$(PYTHON) -m ftkvm.lab.kvm

bare: setup ## of that the commands and one lost host only
	$(PYTHON) -m ftkvm.lab.kvm --no-trials --faults 0 --reboots 0

check: $(VENV)/ready ## format, lint, types, and the tests that need no lab
	$(VENV)/bin/ruff format --check ftkvm hostprep tests
	$(VENV)/bin/ruff check ftkvm hostprep tests
	$(VENV)/bin/mypy
	$(PYTHON) -m pytest -q -m "not lab" -n auto --dist worksteal

# What FT promises is asked once, and once wrong is wrong. The other lab tests (hosts, bad input, interruptions) hang on the
# machine's mood as well: what failed is run a second time, in full sight.
PROMISES := tests/lab/test_demo.py tests/lab/test_ft.py
OTHERS := $(PYTHON) -m pytest -q -m lab --durations=30 $(PROMISES:%=--ignore=%) --ignore=tests/lab/test_power.py --ignore=tests/lab/test_kvm.py
# A lab has hosts of one kind: this one comes first, with a lab of its own that it takes down again.
KVM := $(PYTHON) -m pytest -q -m lab tests/lab/test_kvm.py
# Of some of these `make test` takes a sample; those that are `long` as a whole, one to five minutes each, it leaves to `make long`.
LONG := tests/lab/test_plans_disturbed.py tests/lab/test_shapes.py tests/lab/test_write_back.py tests/lab/test_power.py \
        tests/lab/test_disks.py tests/lab/test_maintenance.py tests/lab/test_refusals.py tests/lab/test_host_preparation.py \
        tests/lab/test_early_enable.py tests/lab/test_upgrade_room.py tests/lab/test_limits.py \
        tests/lab/test_real_hosts.py tests/lab/test_interruptions.py

test: setup tools check ## all of check, then the lab's tests on real hosts
	$(KVM) || $(KVM)
	$(PYTHON) -m pytest -q -m lab $(PROMISES)
	$(OTHERS) || $(OTHERS) --last-failed --last-failed-no-failures none

long: setup ## every case of the tests of which `make test` takes a sample: each step of each plan disturbed, every shape of VM
	FTKVM_FULL=1 $(PYTHON) -m pytest -q -m lab $(LONG)
	FTKVM_FULL=1 FTKVM_LAB=vms $(PYTHON) -m pytest -q -m lab tests/lab/test_vm_hosts_hardware.py

soak: setup ## the long rounds: FT (one connection, one ledger: build/soak.json) and HA (build/ha-soak.json)
	$(PYTHON) -m ftkvm.lab.soak
	$(PYTHON) -m ftkvm.lab.ha_soak
	$(VENV)/bin/ftkvm simulate --world ha --seeds 10000

bench: setup ## unprotected against protected, as ratios from one run: build/bench.json
	$(PYTHON) -m ftkvm.lab.bench
	$(PYTHON) -m ftkvm.sim.ha.bench

format: $(VENV)/ready
	$(VENV)/bin/ruff format ftkvm hostprep tests
	$(VENV)/bin/ruff check --fix ftkvm hostprep tests

clean: ## takes the lab down and removes what was built
	-$(VENV)/bin/ftkvm lab down
	rm -rf build $(VENV)
