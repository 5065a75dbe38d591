# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands in the shell blocks of all pages: which test runs each one, and why some have none.

tests/contract/test_commands.py proves that each command is in exactly one list.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import yaml

from tests.contract.tree import ROOT, tracked_files

PAGES = [file for file in tracked_files() if file.suffix == ".md"]


def commands(page: str) -> Iterator[str]:
    """Yield the commands of a page, without comments and without what they print."""
    blocks = re.findall(r"^( *)```(sh|console)\n(.*?)^\1```", page, flags=re.M | re.S)
    for _indentation, language, block in blocks:
        for line in textwrap.dedent(block).replace("\\\n", " ").splitlines():
            if language == "console" and not line.startswith("$ "):
                continue
            command = re.sub(r"(^| +)# .*", "", line.removeprefix("$ "))
            if command:
                yield " ".join(command.split())


# Pages of which one test runs all commands.
WHOLE_PAGES = {
    "docs/bundle.md": "test_a_controller_without_network_is_set_up_from_a_bundle",
    "docs/for-users.md": "test_each_command_of_the_page_works",
}
# The other tests by name, each with its commands in the order in which it runs them.
RUN_BY: dict[str, tuple[str, ...]] = {
    # tests/contract/test_commands.py
    "test_commands_that_need_no_host_work": (
        "./slipway setup",
        "cp inventory/hosts.example.yml inventory/hosts.yml",
        "./slipway run python tools/role_readme.py",
        "./slipway images --help",
        "./slipway build-collection",
        "ansible-galaxy collection install --force slipway-host-0.1.0.tar.gz",
    ),
    "test_each_export_of_the_page_works": (
        "mkdir -p ~/.ssh ~/.sky",
        "./slipway export ssh-config --out ~/.ssh/slipway.conf",
        "./slipway export skypilot --out ~/.sky/ssh_node_pools.yaml",
        "./slipway export dstack --out fleet.dstack.yml",
        "./slipway export ray --name lab --out ray.yaml",
        "./slipway export gpustack --out gpustack.yaml",
        "./slipway export prometheus --port 9100 --out targets.json",
    ),
    "test_an_inventory_that_git_tracked_survives_an_update": (
        "mv inventory/hosts.yml my-hosts.yml",
        "git checkout inventory/hosts.yml",
        "git pull",
        "mv my-hosts.yml inventory/hosts.yml",
    ),
    # tests/host/test_user_guide.py
    "test_each_command_for_people_from_docker_stacks_works": (
        'docker run -p 8888:8888 -v "$PWD":/home/jovyan/work slipway/jupyter:cpu',
        "docker run -p 8888:8888 --user root -e NB_UID=1010 -e NB_USER=kitten -e CHOWN_HOME=yes "
        '-v "$PWD":/home/jovyan/work slipway/jupyter:cpu start-notebook.py '
        "--ServerApp.base_url=/lab1",
    ),
    "test_deepdocker_starts_with_the_keys_of_a_user": (
        "docker run -p 8888:8888 -p 6006:6006 -p 8787:8787 -p 3838:3838 -p 2222:22 "
        "-v /sharedfolder:/work --user $(id -u):$(id -g) "
        '-e SSH_AUTHORIZED_KEYS="$(cat ~/.ssh/id_ed25519.pub)" slipway/deepdocker:cpu',
    ),
    "test_services_start_without_ansible": (
        "mkdir work",
        "(umask 077; python3 -c 'import secrets; print(secrets.token_hex(24))' >token)",
        'echo "UID_GID=$(id -u):$(id -g)" >.env',
        "docker compose up --wait",
    ),
    "test_each_command_of_administrators_works": (
        "ssh ubuntu@192.0.2.11 true",
        "./slipway plan",
        "./slipway site --check --diff",
        "./slipway site",
        "./slipway verify",
        "ssh alice@192.0.2.11 ml url",
        "./slipway plan --limit gpu01",
        "./slipway site --check --diff --limit gpu01",
        "./slipway site --limit gpu01",
        "./slipway verify --limit gpu01",
        "./slipway verify --full --report acceptance.json",
        "jq -r '.hosts | to_entries[] | select(.value.accepted | not) | .key' acceptance.json",
        "./slipway verify --json | jq -r "
        "'.hosts | to_entries[] | select(.value.accepted | not) | .key'",
        "./slipway plan --json | jq "
        "'.[].health[] | select(.accepted == \"\") | {gpu, fault: .found}'",
        "./slipway plan --json | jq -r 'to_entries[] | .key as $host | .value.health[] | "
        'select(.warning | not) | "\\($host): \\(.where) \\(.found)"\'',
        "./slipway plan --json | jq -r "
        "'to_entries[] | select(.value.state != \"no_drift\") | .key'",
        "./slipway site --limit gpu01 -e docker_engine_restart=always",
        "./slipway site --limit '!gpu01' -e "
        '\'{"slipway_roles": ["nvidia_driver", "docker_engine", "nvidia_container_toolkit"]}\'',
        "./slipway images build pytorch fastai",
        "./slipway images list",
        "./slipway images smoke",
        "./slipway images build pytorch --limit gpu01",
        "./slipway images save pytorch --limit gpu01 -e ml_images_archive=/srv/share/images.tar",
        "./slipway images load --limit '!gpu01' -e ml_images_archive=/srv/share/images.tar",
        "./slipway site --serial 2",
        "./slipway site --serial 25% --max-failures 10%",
        "./slipway run ansible gpu01 -m ansible.builtin.ping -vvvv",
        "SLIPWAY_OUTPUT=ansible ./slipway site",
        "./slipway site -v",
        "ANSIBLE_STDOUT_CALLBACK=slipway.host.live ansible-playbook site.yml",
        "ansible-playbook site.yml",
        "ssh ubuntu@192.0.2.11 sudo docker ps --all",
        "ssh ubuntu@192.0.2.11 sudo docker logs notebooks-notebooks-1",
        "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub",
        "sudo docker stop notebooks-notebooks-1",
        "sudo tar --create --zstd --file /backup/notebooks_work.tar.zst "
        "--directory /var/lib/docker/volumes/notebooks_work/_data .",
        "sudo docker start notebooks-notebooks-1",
        "./slipway report",
        "chmod 755 reports",
        "jq -r 'select(.drift != {}) | .host' reports/*.json",
        "jq -r '.host + \" \" + .overview.driver.version' reports/*.json",
        "rm reports/gpu01.json",
    ),
    # tests/host/test_collection.py
    "test_only_ansible_core_is_installed": (
        "export ANSIBLE_CALLBACKS_ENABLED=slipway.host.summary",
        "ansible-galaxy collection install slipway-host-0.1.0.tar.gz",
        "ansible-playbook slipway.host.plan -i inventory.yml",
        "ansible-playbook slipway.host.site -i inventory.yml",
        "ansible-playbook slipway.host.verify -i inventory.yml",
    ),
    # tests/host/test_remove.py
    "test_the_host_is_as_before_the_first_run": (
        "./slipway remove --check --limit gpu01",
        "./slipway remove --limit gpu01",
    ),
    # tests/host/test_front_door.py
    "test_the_door_answers_and_a_second_run_changes_nothing": (
        "sudo cat /var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt",
    ),
    # tests/host/test_slurm.py
    "test_commands_of_the_page_work_but_not_for_a_stranger": (
        "sinfo --Node --format='%N %t %G'",
        "srun --gres=gpu:1 python3 train.py",
        "sbatch --gres=gpu:h100_pcie:2 --time=12:00:00 train.sh",
        "squeue",
        "scancel --user=alice",
        "sudo scontrol update nodename=gpu02 state=drain reason='new GPU'",
        "sudo scontrol update nodename=gpu02 state=resume",
    ),
    "test_an_account_has_records_and_limits": (
        "sacct --format=JobID,Account,State,Elapsed,AllocTRES",
        "sshare --all",
    ),
    # tests/host/test_upgrade.py
    "test_the_commands_of_the_page_work": (
        "ansible gpu01 -b -m slipway.host.gpu_info",
        "./slipway upgrade --check",
        "./slipway upgrade",
        "./slipway upgrade --serial 4",
        "./slipway upgrade nvidia_driver --limit gpu01",
        "./slipway rollback --limit gpu01",
    ),
    # tests/host/test_gpu_faults.py
    "test_prometheus_scrapes_the_metrics_and_alerts_on_a_fault": (
        "promtool check rules docs/slipway.rules.yml",
    ),
    # tests/host/test_demo.py
    "test_each_command_with_a_demo_works": (
        "./slipway demo",
        "curl -H 'Content-Type: application/json' -d '{\"length\": 5.1, \"width\": 2.4}' "
        "http://172.17.0.2:5000/predict",
        "./slipway demo --gpu 8xh100",
        "./slipway plan -i inventory/demo",
        'ansible all -i inventory/demo -b -m command -a "stand-in-fault row-pending 0000:05:00.0"',
        "./slipway verify -i inventory/demo",
        "./slipway demo --destroy",
    ),
    # tests/host/test_arm64.py
    "test_an_emulated_gb10_host_converges": (
        "./slipway demo --architecture arm64 --gpu gb10",
        "./slipway site -i inventory/demo -e slipway_survey=false",
    ),
    "test_a_demo_of_a_cluster_queues_jobs": (
        "./slipway demo --cluster",
        "ansible demo-1 -i inventory/demo -b -m command -a \"sinfo --Node --format='%N %t %G'\"",
        "ansible demo-1 -i inventory/demo -b -m shell -a "
        "\"cd /tmp; runuser -u demo -- sbatch --gres=gpu:2 --wrap='sleep 600'\"",
    ),
}

# Reasons, each with the commands that no test runs.
NOT_RUN: dict[str, tuple[str, ...]] = {
    "runs tests or benchmarks, this one among them": (
        "./slipway test",
        "./slipway test --quick",
        "./slipway test tests/unit -k apt",
        "./slipway test tests/unit -k node_exporter",
        "./slipway test --molecule site",
        "./slipway test --molecule node_exporter",
        "./slipway test --long",
        "./slipway test --vm",
        "./slipway run python tools/sanity.py",
        "./slipway run python tools/mutants.py --every 5 -- FILE",
        "./slipway run pytest -m host tests/host/test_site.py",
        "./slipway run python bench/run.py",
        "./slipway run python bench/aliases.py",
        "./slipway run python bench/fleet.py",
    ),
    "needs a real GPU": (
        "./slipway run pytest -m gpu",
        "SLIPWAY_GPU_REPORT=gpu-report ./slipway run pytest -m gpu",
        "tests/gpu/pack.sh .slipway/carry",
        "OUT=/tmp/gpu-report sh tests/gpu/run_carried.sh .slipway/carry",
        "python3 collections/ansible_collections/slipway/host/plugins/module_utils/gpu/"
        "cuda_check.py",
        "nvidia-smi --query-compute-apps=gpu_bus_id,pid,process_name --format=csv",
        "fuser -v /dev/nvidia*",
        "docker ps",
        "nvidia-smi -pm 0 -i 0000:3b:00.0",
        "nvidia-smi --gpu-reset -i 0000:3b:00.0",
        "nvidia-smi -pm 1 -i 0000:3b:00.0",
    ),
    "needs a host with an old kernel of Ubuntu": (
        "apt-get purge --allow-change-held-packages 'linux-image-6.8.0-31-*' "
        "'linux-modules-nvidia-*-6.8.0-31-*'",
    ),
    "downloads from the internet": (
        "ansible-galaxy collection install -r requirements.yml",
        "git clone https://github.com/jupyter/docker-stacks",
        "tools/docker-stacks-tests docker-stacks slipway/jupyter-full:cpu",
    ),
    "needs the image llm of 4 GB: tests/unit/test_chat.py has a server that answers like it": (
        "ml url llm",
        "ml chat",
        "ml chat --model qwen <question.txt >answer.txt",
        "export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=KEY",
        "llm --volume /srv/models:/models --detach",
    ),
    "needs a registry: tests/host/test_execution_environment.py builds the image without one": (
        "ansible-builder build -f tools/execution-environment.yml "
        "-t registry.example.org/slipway-ee:1",
        "docker push registry.example.org/slipway-ee:1",
    ),
    "installs another program beside Ansible": (
        "./slipway run pip install 'ara[server]'",
        'export ANSIBLE_CALLBACK_PLUGINS="$(./slipway run python -m ara.setup.callback_plugins)"',
        "./slipway run ara playbook list",
    ),
    "resolves with a package index: tests/unit/test_lock_images.py has one": (
        "./slipway images lock tabular",
        "./slipway images lock --torch-index URL",
    ),
    "needs what the reader of the page makes: tests/contract/test_pages.py does that in a copy": (
        "./slipway plan -e docker_engine_debug_log=true --limit gpu01",
        "docker run --rm --network none --read-only --tmpfs /tmp:exec --user 1234:1234 "
        "slipway/tabular:cpu python3 /opt/slipway/smoke.py",
    ),
}


def run_by(test: str) -> tuple[str, ...]:
    """Return the commands that a test runs, in their order."""
    return RUN_BY[test]


class Checkout:
    """A copy of the project without its history, with the environment of this one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "slipway"
        for file in tracked_files():
            target = self.folder / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, target)
        state = self.folder / ".slipway"
        state.mkdir()
        for name in ("cache", "collections", "env", "env.stamp"):
            if (ROOT / ".slipway" / name).exists():
                (state / name).symlink_to(ROOT / ".slipway" / name)
        # The programs of a folder, and its reports, are its own.
        own = {name: value for name, value in os.environ.items() if name != "SLIPWAY_REPORTS"}
        self.environment = own | {
            "ANSIBLE_CONFIG": str(self.folder / "ansible.cfg"),
            "PATH": f"{ROOT / '.slipway/env/bin'}:{os.environ['PATH']}",
        }

    def declare(self, inventory: Path, host: str, *names: str) -> None:
        """Write the inventory of a test, in which its HOST has other NAMES."""
        declared = yaml.safe_load(inventory.read_text())["all"]["hosts"][host]
        hosts = {"all": {"hosts": dict.fromkeys(names, declared)}}
        (self.folder / "inventory/hosts.yml").write_text(yaml.safe_dump(hosts))

    def run(
        self, command: str, answer: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the copy, with an ANSWER to its question."""
        return subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=self.folder,
            env=self.environment | environment,
            input=answer,
            capture_output=True,
            text=True,
            check=False,
        )
