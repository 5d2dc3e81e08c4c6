"""vLLM as an engine, in this process or as a server, with weights that follow the policy's.

vLLM computes with other kernels, often in another precision. Its log-probs therefore differ slightly from the policy's,
and the modules correct for that (importance_cap). Every completion is a request with its own seed; vLLM's prefix cache
computes a group's prompt once. Every turn of a conversation is a request too, whose beginning that cache knows.
"""

import json
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from policies import Policy
from rollouts.request_engine import Answer, Request, RequestEngine
from support.errors import ConfigError
from support.identity import identity


class VLLMEngine(RequestEngine):
    """vLLM in the training process, on the same device.

    Args:
        gpu_memory_utilization: fraction of the GPU's memory for weights and cache together.
        sleep: free vLLM's memory while the policy is updated (GPU only).
        options: further arguments of vllm.LLM.
    """

    def __init__(
        self, gpu_memory_utilization: float = 0.3, sleep: bool = True, options: dict[str, Any] | None = None
    ) -> None:
        self.gpu_memory_utilization, self.sleep, self.options = gpu_memory_utilization, sleep, options or {}
        self.llm: Any = None
        self.version: int | None = None
        self.asleep = False

    def identity(self) -> Any:
        return identity(self.options)

    def answer(self, policy: Policy, requests: list[Request]) -> list[Answer]:
        self._start(policy)
        from vllm import SamplingParams as Params

        if self.version != policy.version:
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": policy.weights()})
            self.llm.reset_prefix_cache()
            self.version = policy.version
        outputs = self.llm.generate(
            [{"prompt_token_ids": request.ids} for request in requests],
            [Params(**request.params) for request in requests],
            use_tqdm=False,
        )
        completions = [output.outputs[0] for output in outputs]
        return [
            Answer(
                list(c.token_ids),
                [step[token].logprob for step, token in zip(c.logprobs, c.token_ids, strict=True)],
                c.finish_reason == "stop",
            )
            for c in completions
        ]

    def rest(self, policy: Policy) -> None:
        if self._sleeps(policy):
            self.llm.sleep(level=2)  # discards weights and cache: both are stale after the update
            self.version, self.asleep = None, True

    def _sleeps(self, policy: Policy) -> bool:
        return self.sleep and policy.device.type == "cuda"

    def _start(self, policy: Policy) -> None:
        if self.llm is not None:
            if self.asleep:
                self.llm.wake_up()
                self.asleep = False
            return
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # weights are handed over within the process
        try:
            from vllm import LLM
        except ImportError:
            raise ConfigError(
                "VLLMEngine needs vLLM, which is not installed; run `pip install 'lightning-posttrain[vllm]'`."
            ) from None
        folder = tempfile.mkdtemp()  # vLLM reads the architecture and the initial weights from a folder
        try:
            policy.save(folder)
            self.llm = LLM(
                model=folder,
                dtype=str(next(policy.model.parameters()).dtype).removeprefix("torch."),
                max_model_len=policy.context,
                gpu_memory_utilization=self.gpu_memory_utilization,
                enable_sleep_mode=self._sleeps(policy),
                logprobs_mode="processed_logprobs",  # under the distribution that is sampled from
                **self.options,
            )
        finally:
            shutil.rmtree(folder)
        self.version = policy.version


class VLLMServer(RequestEngine):
    """A vLLM server that shares a folder with this process.

    Start it with:

        VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs

    For `sync: adapter` add VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora --max-lora-rank R.

    Args:
        url: of the server.
        folder: for passing weights to the server, which must see it under the same path; a temporary folder if None.
            With several processes each one uses its own folder in it.
        sync: pass all weights (adapters merged), or the LoRA adapter alone.
        timeout: seconds to wait for one answer. concurrent: maximum number of requests in flight.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        folder: str | None = None,
        sync: Literal["weights", "adapter"] = "weights",
        timeout: float = 600.0,
        concurrent: int = 128,
    ) -> None:
        self.url, self.sync, self.timeout, self.concurrent = url.rstrip("/"), sync, timeout, concurrent
        self.folder = Path(folder or tempfile.mkdtemp())
        self.model: str | None = None
        self.version: int | None = None

    def identity(self) -> Any:
        return [self.url, self.sync]

    def answer(self, policy: Policy, requests: list[Request]) -> list[Answer]:
        if self.sync == "adapter" and policy.params.lora is None:
            raise ConfigError(
                "VLLMServer has sync: adapter, but the policy has no adapter; set policy.lora or sync: weights."
            )
        if self.model is None:
            self.model = self._call("GET", "/v1/models")["data"][0]["id"]
        if self.version != policy.version:
            self._hand_over(policy)
            self.version = policy.version
        with ThreadPoolExecutor(self.concurrent) as pool:
            return list(pool.map(self._complete, requests))

    def _hand_over(self, policy: Policy) -> None:
        folder = self.folder
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            folder = folder / f"process_{torch.distributed.get_rank()}"
        if self.sync == "adapter":
            policy.save_adapter(folder)
            self._call(
                "POST", "/v1/load_lora_adapter", {"lora_name": "policy", "lora_path": str(folder), "load_inplace": True}
            )
            self.model = "policy"
        else:
            folder.mkdir(parents=True, exist_ok=True)
            policy.bare.config.save_pretrained(folder)
            # Copies, because a tied output layer must be written too: otherwise vLLM's reload does not change it.
            save_file(
                {name: weight.clone().contiguous() for name, weight in policy.weights()}, folder / "model.safetensors"
            )
            self._call("POST", "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
        self._call("POST", "/reset_prefix_cache")

    def _complete(self, request: Request) -> Answer:
        body = {"model": self.model, "prompt": request.ids, "return_token_ids": True, **request.params}
        choice = self._call("POST", "/v1/completions", body)["choices"][0]
        return Answer(choice["token_ids"], choice["logprobs"]["token_logprobs"], choice["finish_reason"] == "stop")

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                text = response.read().decode()
        except urllib.error.HTTPError as error:
            raise ConfigError(
                f"the vLLM server at {self.url} answered {error.code} to {path}: "
                f"{error.read().decode(errors='replace')[:300]!r}; start it as the docstring of VLLMServer says."
            ) from None
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            raise ConfigError(
                f"the vLLM server at {self.url} cannot be reached ({getattr(error, 'reason', error)}); start it as the "
                "docstring of VLLMServer says, or correct model.engine.url."
            ) from None
        return json.loads(text) if text.startswith(("{", "[")) else None
