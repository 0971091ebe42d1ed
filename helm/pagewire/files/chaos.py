"""Deletes pods of a release under load, one after the other, and compares every stream with an undisturbed one.

Where the service is, and what it asks for, comes from the PAGEWIRE_* variables that the client library reads.
"""

import argparse
import json
import os
import ssl
import sys
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

from pagewire_client import Client, PagewireError, RetryPolicy, SamplingParams

PATIENCE_S = 1800.0
PATIENT = RetryPolicy(max_attempts=10_000, max_resume_attempts=10_000)
PARAMS = SamplingParams(temperature=0.0, max_tokens=256, ignore_eos=True)


class Cluster:
    """The pods of one release, through the cluster's API."""

    def __init__(self, url: str, account: Path, namespace: str, selector: str) -> None:
        self._pods = f"{url}/api/v1/namespaces/{namespace}/pods"
        self._selector = selector
        self._token = account / "token"
        self._tls = ssl.create_default_context(cafile=account / "ca.crt") if url.startswith("https:") else None

    def pods(self, component: str) -> list[dict]:
        """Those of a component that are not on their way out."""
        query = urllib.parse.urlencode({"labelSelector": f"{self._selector},app.kubernetes.io/component={component}"})
        pods = self._ask("GET", f"?{query}")["items"]
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def delete(self, name: str) -> None:
        """Have a pod end, as any rollout does."""
        self._ask("DELETE", f"/{name}")

    def wait_until_ready(self, component: str, count: int) -> None:
        """Wait until so many pods of a component are ready."""
        deadline = time.monotonic() + PATIENCE_S
        while sum(is_ready(pod) for pod in self.pods(component)) < count:
            if time.monotonic() > deadline:
                sys.exit(f"chaos: {component} was not ready again within {PATIENCE_S:.0f} s")
            time.sleep(1.0)

    def _ask(self, method: str, path: str) -> dict:
        headers = {"Authorization": f"Bearer {self._token.read_text()}"}
        request = urllib.request.Request(self._pods + path, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=30, context=self._tls) as answer:
            return json.load(answer)


class Caller(threading.Thread):
    """Asks the same again and again until told to stop; counts answers, and notes what was wrong."""

    def __init__(self, address: str, prompt: str, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.num_answers = 0
        self.wrong: list[str] = []
        self._client = Client(address, retry=PATIENT)
        self._prompt = prompt
        self._stop_asking = stop
        self._expected = self._client.generate(prompt, PARAMS).token_ids

    def run(self) -> None:
        while not self._stop_asking.is_set():
            try:
                got = self._client.generate(self._prompt, PARAMS).token_ids
            except PagewireError as error:
                self.wrong.append(f"{self._prompt!r} failed: {error}")
                continue
            self.num_answers += 1
            if got != self._expected:
                self.wrong.append(f"{self._prompt!r} gave other tokens than before")


def is_ready(pod: dict) -> bool:
    """Whether its readiness probes say so."""
    conditions = pod["status"].get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--selector", required=True, help="labels of the release's pods")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--api", default="https://kubernetes.default.svc")
    parser.add_argument("--account", type=Path, default=Path("/var/run/secrets/kubernetes.io/serviceaccount"))
    flags = parser.parse_args()
    cluster = Cluster(flags.api, flags.account, flags.namespace, flags.selector)
    counts = {component: len(cluster.pods(component)) for component in ("engine", "gateway")}
    stop = threading.Event()
    callers = [
        Caller(os.environ["PAGEWIRE_ADDRESS"], f"Stream number {number}:", stop) for number in range(flags.streams)
    ]
    for caller in callers:
        caller.start()
    for number in range(flags.kills):
        component = ("engine", "gateway")[number % 2]
        pods = cluster.pods(component)
        victim = pods[number // 2 % len(pods)]["metadata"]["name"]
        print(f"deleting {victim}", flush=True)
        cluster.delete(victim)
        cluster.wait_until_ready(component, counts[component])
    stop.set()
    for caller in callers:
        caller.join(PATIENCE_S)
    wrong = [line for caller in callers for line in caller.wrong]
    stuck = sum(caller.is_alive() for caller in callers)
    print(f"{sum(caller.num_answers for caller in callers)} streams, {len(wrong)} wrong, {stuck} without an end")
    print(*wrong[:20], sep="\n")
    return 1 if wrong or stuck else 0


if __name__ == "__main__":
    sys.exit(main())
