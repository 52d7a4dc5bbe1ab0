"""Files for clusters: Ray's own check of the launcher's, the fields of the others, no secret."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = [ROOT / "ray_cluster.yaml", ROOT / "cluster" / "on_premise.yaml"]
ALL = [*LAUNCHER, *sorted(path for path in (ROOT / "cluster").iterdir() if path.is_file())]


def documents(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


def kinds(name: str) -> dict[str, dict[str, Any]]:
    return {f"{d['kind']}/{d['metadata']['name']}": d for d in documents(ROOT / "cluster" / name)}


@pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.name)
def test_ray_itself_takes_the_launchers_files(path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(path.read_text()))
    validate_config(config)
    commands = "\n".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in commands and "--autoscaling-config=" in commands
    assert "~/.ray/auth_token" in config["file_mounts"]
    everything = path.read_text()
    assert "RAY_AUTH_MODE=token" in everything


def test_the_aws_cluster_has_a_head_decoders_and_gpus() -> None:
    config = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    types = config["available_node_types"]
    assert config["head_node_type"] == "head" and set(types) == {"head", "decode", "gpu"}
    assert types["head"]["resources"] == {"CPU": 0}
    for name in ("decode", "gpu"):
        assert types[name]["min_workers"] == 0 < types[name]["max_workers"]
    assert sum(types[n]["max_workers"] for n in ("decode", "gpu")) <= config["max_workers"]
    for one in types.values():
        assert one["node_config"]["MetadataOptions"]["HttpTokens"] == "required"


def test_kuberay() -> None:
    from importlib.metadata import version

    found = kinds("kuberay.yaml")
    cluster, job = found["RayCluster/selfshot"], found["RayJob/selfshot-figure02"]
    assert cluster["apiVersion"] == job["apiVersion"] == "ray.io/v1"
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    (allowed,) = found["NetworkPolicy/selfshot-ray"]["spec"]["ingress"]
    assert allowed["from"][0] == {"podSelector": {}}
    spec = cluster["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == version("ray")
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert set(groups) == {"decode", "gpu"}
    for group in [spec["headGroupSpec"], *groups.values()]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] and container["resources"]["limits"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
    limits = groups["gpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"
    claims = {d["metadata"]["name"] for d in found.values() if d["kind"].endswith("Claim")}
    assert claims == {"selfshot-shared"}


def test_the_jobs_command_is_understood() -> None:
    import shlex

    import typer

    from selfshot import cli

    entry = kinds("kuberay.yaml")["RayJob/selfshot-figure02"]["spec"]["entrypoint"]
    words = shlex.split(entry)
    assert words[:2] == ["selfshot", "run"]
    command: Any = typer.main.get_command(cli.app)
    chosen = command.commands["run"].make_context("run", words[2:]).params
    path = str(chosen["experiment"]).removeprefix("/opt/selfshot/")
    assert (ROOT / path).is_file()


def test_mlflow_has_a_database_and_an_artifact_store() -> None:
    found = kinds("mlflow.yaml")
    server = found["Deployment/selfshot-mlflow"]["spec"]["template"]["spec"]["containers"][0]
    command = server["args"][0]
    assert "postgresql://" in command and "--artifacts-destination" in command
    assert "--allowed-hosts" in command
    for name in ("selfshot-mlflow", "selfshot-mlflow-database"):
        assert found[f"Service/{name}"]["spec"]["type"] == "ClusterIP"


def test_the_runtime_environment_is_one_that_ray_takes() -> None:
    from ray.runtime_env import RuntimeEnv

    content = yaml.safe_load((ROOT / "cluster" / "runtime_env.yaml").read_text())
    RuntimeEnv(**{key: value for key, value in content.items() if key != "excludes"})
    assert {".git", ".venv", "runs"} <= set(content["excludes"])


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_no_secret_and_no_open_door(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN|ghp_|hf_[A-Za-z0-9]{20}", text)
    assert not re.search(r"RAY_AUTH_TOKEN\s*[=:]", text)
    secret = r"(?i)(password|secret_?key|token)\s*[:=]\s*['\"]?[A-Za-z0-9+/]{12,}"
    assert not re.search(secret, text)
    assert "dashboard-host=0.0.0.0" not in text
    if 'dashboard-host: "0.0.0.0"' in text:  # KubeRay needs it: then with a token and a policy
        assert "authOptions" in text and "NetworkPolicy" in text
    for kind in ("LoadBalancer", "NodePort", "privileged: true"):
        assert kind not in text


@pytest.mark.skipif(os.geteuid() != 0, reason="local_nodes says first that it needs root")
def test_local_nodes_in_a_shell_without_the_environment() -> None:
    done = subprocess.run(
        [os.path.realpath(sys.executable), "-S", str(ROOT / "cluster" / "local_nodes")],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
    )
    if "namespace" in done.stderr or "iproute2" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 2
    assert re.fullmatch(r"error: there is no `ray` .*activate the environment.*\n", done.stderr)
