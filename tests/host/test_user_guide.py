# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of the pages and of the documents behind the project, as printed.

The images are those of the catalogue, without the machine-learning frameworks.
"""

from __future__ import annotations

import re
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.host_spec import HostSpec
from lab.hosts import Group
from tests import page_commands
from tests.host.conftest import ROOT
from tests.host.test_aliases import Lab
from tests.page_commands import Checkout

pytestmark = [pytest.mark.host, pytest.mark.long]

GROUP = "pytest-guide"
IMAGES = ("jupyter", "pytorch", "fastai", "deepdocker", "iris-api")
PAGE = ROOT / "docs/for-users.md"
LOGIN = "ssh alice@192.0.2.11 ml url"
# Preparation of the commands of the page. {} is the command as the page has it.
FILES = """
mkdir -p ~/code && cd ~/code
echo 'import sys; print("trained", *sys.argv[1:])' >train.py
echo 'import sys; print(sys.stdin.read().upper())' >predict.py
echo text >in.csv
"""
# Arguments: name and version of the package.
WHEEL = """
import sys, zipfile
name, version = sys.argv[1:]
info = f"{name}-{version}.dist-info"
files = {
    f"{name}.py": f"version = {version!r}\\ndef main(): print(version)\\n",
    f"{info}/METADATA": f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n",
    f"{info}/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    f"{info}/entry_points.txt": f"[console_scripts]\\n{name} = {name}:main\\n",
    f"{info}/RECORD": "",
}
with zipfile.ZipFile(f"/home/alice/code/{name}-{version}-py3-none-any.whl", "w") as wheel:
    for path, text in files.items():
        wheel.writestr(path, text)
"""
# A shell that a person leaves, and one that stays while the next commands run.
LEFT, KEPT = "echo exit | {}", "(sleep 120 | {}) >/dev/null 2>&1 & sleep 15"
OFFLINE = "[*]\nenv.PIP_NO_INDEX = 1\nenv.PIP_FIND_LINKS = /code\n"
PREPARED = {
    "fastai": LEFT,
    "pytorch --root bash": KEPT,
}


def without_frameworks(images: Path) -> None:
    """Let the images of a catalogue need nothing but Jupyter, so that they are built in seconds."""
    for name in {path.parent.name for path in images.glob("*/image.yml")} - set(IMAGES):
        shutil.rmtree(images / name)
    for name in ("pytorch", "fastai", "deepdocker"):
        folder = images / name
        declared: dict[str, Any] = yaml.safe_load((folder / "image.yml").read_text())
        declared.pop("requirements", None)
        declared |= {"base": "jupyter", "version": "1.0", "smoke": {"file": "none.sh"}}
        (folder / "none.sh").write_text("true\n")
        if name == "deepdocker":
            lock = (folder / "requirements.lock").read_text()
            (pin,) = re.findall(r"^supervisor==.*?(?=^\S)", lock, flags=re.M | re.S)
            (folder / "requirements.in").write_text("supervisor\n")
            (folder / "requirements.lock").write_text(pin)
            declared |= {
                "requirements": "requirements.in",
                "packages": ["libnss-wrapper", "openssh-server"],
            }
        else:
            declared.pop("packages", None)
        (folder / "image.yml").write_text(yaml.safe_dump(declared))


class Guide(Lab):
    """A host with all images of the guide; alice may have services."""

    def declare_people(self, **variables: Any) -> None:
        """Declare the people, the images, and these variables."""
        self.people(ml_images_present=list(IMAGES), **variables)
        declared = yaml.safe_load(self.inventory.read_text())
        (host,) = declared["all"]["hosts"].values()
        host["user_access_users"][0]["uid"] = 2001
        self.inventory.write_text(yaml.safe_dump(declared))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guide]:
    """A host with the images, and alice, who may use Docker."""
    catalogue = tmp_path_factory.mktemp("catalogue") / "images"
    shutil.copytree(ROOT / "images", catalogue, ignore=shutil.ignore_patterns("torch-cpu.lock"))
    without_frameworks(catalogue)
    group = Group(GROUP)
    group.remove()
    lab = Guide(group.ensure(HostSpec("guide-1")), tmp_path_factory.mktemp("guide-1"), catalogue)
    lab.declare_people()
    lab.converge()
    lab.on("apt-get -qq install -y --no-install-recommends curl >/dev/null 2>&1")
    yield lab
    group.remove()


@pytest.fixture(autouse=True)
def cleared(lab: Guide) -> Iterator[None]:
    yield
    lab.on("docker ps --all --quiet | xargs --no-run-if-empty docker rm --force >/dev/null")


# docs/for-users.md


def test_each_command_of_the_page_works(lab: Guide) -> None:
    page = list(page_commands.commands(PAGE.read_text(encoding="utf-8")))
    assert set(PREPARED) <= set(page)
    lab.on("install -d -o alice -m 700 ~alice/.ssh; test -e ~alice/.ssh/config || echo ok")
    key = lab.host.private_key_file.read_text()
    hosts = "Host gpu01 gpu02\nHostName 127.0.0.1\nStrictHostKeyChecking no\nLogLevel ERROR\n"
    lab.as_user("alice", "umask 077; cat >~/.ssh/id_ed25519", key)
    lab.as_user("alice", "cat >~/.ssh/config; chmod 600 ~/.ssh/config", hosts)
    lab.as_user("alice", FILES)
    # Containers of the host reach no package index.
    lab.as_user("alice", "python3 - emoji 1", WHEEL)
    lab.as_user("alice", "mkdir -p ~/.config/slipway; cat >~/.config/slipway/aliases.ini", OFFLINE)
    failed = {}
    for command in page:
        script = PREPARED.get(command, "{} </dev/null").format(command)
        if "ssh" in command or "|" in command or "<" in command:
            script = command
        # With `&&`, the shell of a job in the background would keep the connection open.
        done = lab.try_as("alice", f"cd ~/code; {script}")
        if done.returncode != 0:
            failed[command] = done.stdout + done.stderr
    lab.as_user("alice", "rm -r ~/.config/slipway")
    assert failed == {}
    assert lab.as_user("alice", "cat ~/code/out.csv") == "TEXT"


# Pages for administrators


# How a command ends, unless with 0.
STATUS = {"./slipway plan": 2}
SERVICE = {"name": "notebooks", "image": "jupyter", "user": "alice"}
ON_THE_HOST = ("sudo ", "ssh-keygen ")


@pytest.fixture
def notebooks(lab: Guide) -> Iterator[None]:
    """Notebooks for alice are declared; the first run of a test starts them."""
    # `images smoke` runs the smoke tests once; each verify would run them again.
    lab.declare_people(ml_services_instances=[SERVICE], host_verify_smoke=False)
    lab.on("install -d /backup /srv/share")
    yield
    lab.declare_people()
    lab.converge()


@pytest.mark.usefixtures("notebooks")
def test_each_command_of_administrators_works(lab: Guide, tmp_path: Path) -> None:
    checkout, failed, printed = Checkout(tmp_path), {}, {}
    for command in page_commands.run_by("test_each_command_of_administrators_works"):
        others = ["gpu02"] if "!gpu01" in command else []
        checkout.declare(lab.inventory, lab.host.name, "gpu01", *others)
        if command.startswith(ON_THE_HOST):
            done = lab.try_as(lab.host.user, command)
        else:
            script = command.replace("ssh ubuntu@192.0.2.11", shlex.join(lab.ssh(lab.host.user)))
            script = script.replace("ssh alice@192.0.2.11", shlex.join(lab.ssh("alice")))
            done = checkout.run(script)
        printed[command] = done.stdout
        if done.returncode != STATUS.get(command, 0) or "Traceback" in done.stderr:
            failed[command] = done.stdout + done.stderr
    assert failed == {}
    assert "notebooks jupyter  http://127.0.0.1:8888/lab?token=" in printed[LOGIN]
    assert printed["jq -r 'select(.drift != {}) | .host' reports/*.json"] == ""
    assert (checkout.folder / "reports/index.html").is_file()
    assert lab.on("tar -tf /backup/notebooks_work.tar.zst").startswith("./")


# How people start containers without a command of Slipway


def test_deepdocker_starts_with_the_keys_of_a_user(lab: Guide) -> None:
    lab.on("install -d -o alice /sharedfolder")
    key = lab.host.private_key_file.with_suffix(".pub").read_text()
    lab.as_user("alice", "mkdir -p ~/.ssh; cat >~/.ssh/id_ed25519.pub", key)
    (command,) = page_commands.run_by("test_deepdocker_starts_with_the_keys_of_a_user")
    lab.as_user("alice", command.replace("docker run", "docker run --detach", 1))
    assert "Jupyter" in answer(lab, "http://127.0.0.1:8888/login")


def test_services_start_without_ansible(lab: Guide) -> None:
    compose = (ROOT / "images/compose.yaml").read_text()
    lab.as_user("alice", "mkdir -p ~/compose; cat >~/compose/compose.yaml", compose)
    # Stand-ins: the images of the catalogue that this host does not have.
    stand_ins = {"ml-python": "jupyter", "tensorboard": "iris-api"}
    for name, image in stand_ins.items():
        lab.on(f"docker tag slipway/{image}:cpu slipway/{name}:cpu")
    for command in page_commands.run_by("test_services_start_without_ansible"):
        lab.as_user("alice", f"cd ~/compose; {command}")
    token = lab.as_user("alice", "cat ~/compose/token")
    assert '"content"' in answer(lab, f"http://127.0.0.1:8888/api/contents?token={token}")
    lab.as_user("alice", "cd ~/compose; docker compose down --timeout 1")
    lab.on(f"docker image rm {' '.join(f'slipway/{name}:cpu' for name in stand_ins)}")


# Python packages


INSTALL = "install --quiet --no-index --find-links /code"
IMPORT = "python -c 'import thing; print(thing.version)'"


@pytest.fixture
def wheels(lab: Guide) -> Iterator[None]:
    for version in ("1", "2"):
        lab.as_user("alice", f"mkdir -p ~/code && python3 - thing {version}", WHEEL)
    yield
    lab.on("rm -rf /home/alice/.local/share/slipway/packages")


@pytest.mark.usefixtures("wheels")
def test_packages_of_pip_last_and_belong_to_the_user(lab: Guide) -> None:
    lab.as_user("alice", f"notebook pip {INSTALL} thing==1")
    assert lab.as_user("alice", f"notebook {IMPORT}") == "1"
    assert lab.as_user("alice", "notebook thing") == "1"
    lab.as_user("alice", f"notebook python -m pip {INSTALL} --user --upgrade thing")
    assert lab.as_user("alice", f"notebook {IMPORT}") == "2"
    assert lab.as_user("alice", "notebook pip list 2>/dev/null | grep -c '^thing '") == "1"
    # Each command has its own packages.
    assert lab.try_as("alice", f"pytorch {IMPORT}").returncode == 1
    assert lab.on("find /home/alice/.local ! -user alice") == ""
    lab.as_user("alice", "notebook sh -c 'mkdir -p ~/.config/tool ~/.cache/tool'")
    lab.as_user("alice", "notebook pip uninstall --yes --quiet thing")
    assert lab.try_as("alice", f"notebook {IMPORT}").returncode == 1


@pytest.mark.usefixtures("wheels")
def test_a_package_of_the_image_is_replaced_for_the_user_alone(lab: Guide) -> None:
    lab.as_user("alice", "python3 - seaborn 99", WHEEL)
    lab.as_user("alice", f"notebook pip {INSTALL} --no-deps seaborn==99")
    code = "python -c 'import seaborn; print(seaborn.__file__)'"
    assert lab.as_user("alice", f"notebook {code}").startswith("/opt/user/")
    assert lab.as_user("alice", f"pytorch {code}").startswith("/opt/venv/")


@pytest.mark.usefixtures("wheels")
def test_a_notebook_installs_packages(lab: Guide) -> None:
    cells = [f"%pip {INSTALL} thing==1", "import thing; print('found', thing.version)"]
    code = (
        "import nbformat, nbclient; n = nbformat.v4.new_notebook(cells=["
        f"nbformat.v4.new_code_cell(c) for c in {cells!r}]); nbclient.NotebookClient(n).execute();"
        "print(n.cells[-1].outputs[0].text)"
    )
    assert lab.as_user("alice", f"notebook python -c {shlex.quote(code)}") == "found 1"


@pytest.mark.usefixtures("wheels")
def test_root_installs_packages_for_a_committed_image(lab: Guide) -> None:
    lab.on("chmod 755 /home/alice /home/alice/code")
    run = "docker run --name made --user 0:0 -v /home/alice/code:/code slipway/jupyter:cpu"
    lab.on(f"{run} pip {INSTALL} --root-user-action ignore thing==1")
    lab.as_user("alice", "docker commit made alice/made:1")
    assert lab.as_user("alice", f"notebook --image alice/made:1 {IMPORT}") == "1"


# docs/docker-stacks.md


def test_each_command_for_people_from_docker_stacks_works(lab: Guide) -> None:
    lab.as_user("alice", "mkdir -p ~/stacks && touch ~/stacks/mine.ipynb")
    lines = page_commands.run_by("test_each_command_for_people_from_docker_stacks_works")
    for line, base in zip(lines, ("/", "/lab1/"), strict=True):
        detached = line.replace("docker run", "docker run --detach -e JUPYTER_TOKEN=t", 1)
        container = lab.as_user("alice", f"cd ~/stacks && {detached}")
        listed = answer(lab, f"http://127.0.0.1:8888{base}api/contents?token=t")
        # In the folder of the person, or in the home with the folder in it.
        assert "mine.ipynb" in listed or '"work"' in listed
        user = lab.on(f"docker exec {container} ps -C jupyter-lab -o user=")
        assert user == ("slipway" if base == "/" else "kitten")
        lab.on(f"docker rm --force {container}")


# Command lines of the documents that describe deepdocker, the fast.ai course, and the iris API.


def answer(lab: Guide, url: str, data: str = "") -> str:
    """Return the answer at an address of the host, as soon as there is one."""
    post = f"-H 'Content-Type: application/json' -d {shlex.quote(data)}" if data else ""
    for _ in range(60):
        done = lab.try_as("alice", f"curl --silent --fail {post} {shlex.quote(url)}")
        if done.returncode == 0:
            return done.stdout
        time.sleep(1)
    raise AssertionError(f"no answer at {url}: {done.stderr}")


def test_deepdocker_runs_as_its_document_says(lab: Guide) -> None:
    lab.on("install -d -o alice /sharedfolder")
    ports = "-p 8888:8888 -p 6006:6006 -p 8787:8787 -p 2222:22"
    line = f"docker run {ports} -v /sharedfolder:/root/sharedfolder -it slipway/deepdocker:cpu bash"
    terminal = lab.terminal("alice", f"bash -c 'echo \"> \"; exec {line}'")
    terminal.expect(r"\$ ")
    terminal.sendline("ls -d /root/sharedfolder && sh run_all.sh")
    # The shell switches off a mode of the terminal before the output.
    terminal.expect(r"[\r\n]/root/sharedfolder")
    assert "Jupyter" in answer(lab, "http://127.0.0.1:8888/login")
    terminal.close(force=True)


def test_deepdocker_starts_a_notebook(lab: Guide) -> None:
    line = "docker run -it -p 8888:8888 -p 6006:6006 slipway/deepdocker:cpu jupyter notebook"
    terminal = lab.terminal("alice", f"bash -c 'echo \"> \"; exec {line}'")
    terminal.expect(r"http://127\.0\.0\.1:8888/tree\?token=\w+")
    terminal.close(force=True)


COURSE = "~/code/fastai/courses/dl1"
FASTAI = (
    "CODE=~/code; DATA=~/data; docker run --init -it -p 8888:8888 -v $CODE:/code -v $DATA:/data "
    '-w="/code/fastai" slipway/fastai:cpu'
)


@pytest.mark.parametrize(
    ("start", "notebook", "mode"),
    [
        # Without the alias, the container runs as the user 1000, who needs the right to write.
        (FASTAI, "jupyter_notebook_GPU_0_PORT_8888", "777"),
        (FASTAI, "j8", "777"),
        ("fastai", "j8", "755"),
    ],
)
def test_fastai_starts_a_notebook_on_the_first_gpu(
    lab: Guide, start: str, notebook: str, mode: str
) -> None:
    lab.as_user("alice", f"mkdir -p {COURSE} ~/data; rm -f {COURSE}/data; chmod {mode} {COURSE}")
    terminal = lab.terminal("alice", f"echo '> '; {start}")
    terminal.expect(r"\$ ")
    terminal.sendline(notebook)
    # Jupyter does not print the token of the alias, which printed it before the shell.
    terminal.expect(r"http://127\.0\.0\.1:8888/lab\?token=[\w.]+")
    terminal.close(force=True)
    assert lab.as_user("alice", f"readlink {COURSE}/data") == "/data"


def test_the_iris_api_answers_on_its_port(lab: Guide) -> None:
    lab.as_user("alice", "docker run --detach -p 5000:5000 slipway/iris-api:cpu")
    said = answer(lab, "http://127.0.0.1:5000/predict", '{ "length": 5.1, "width": 2.4 }')
    assert "virginica" in said
