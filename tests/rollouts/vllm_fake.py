"""A stand-in for vLLM with its own copy of the weights, which answers a request by plain forwards."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class FakeLLM:
    made: "list[FakeLLM]" = []

    def __init__(self, model, **options):
        self.model, self.tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
        self.options, self.calls = options, []
        FakeLLM.made.append(self)

    def collective_rpc(self, method, kwargs):
        assert method == "reload_weights"
        if "weights_path" in kwargs:
            self.model = AutoModelForCausalLM.from_pretrained(kwargs["weights_path"])
        else:
            missing, unexpected = self.model.load_state_dict(dict(kwargs["weights_iterator"]), strict=False)
            assert not missing and not unexpected
        self.calls.append("reload")

    def reset_prefix_cache(self):
        self.calls.append("reset")

    def generate(self, prompts, params, use_tqdm):
        return [
            SimpleNamespace(outputs=[self.complete(p["prompt_token_ids"], s)])
            for p, s in zip(prompts, params, strict=True)
        ]

    @torch.no_grad()
    def complete(self, ids, params):
        generator = torch.Generator().manual_seed(params.seed)
        tokens, logprobs, reason = [], [], "length"
        while len(tokens) < params.max_tokens and reason == "length":
            logits = self.model(torch.tensor([ids + tokens])).logits[0, -1] / (params.temperature or 1.0)
            if params.top_k:
                logits = logits.masked_fill(logits < logits.topk(params.top_k).values[-1], -torch.inf)
            log = logits.log_softmax(-1)
            token = (
                int(log.argmax())
                if params.temperature == 0
                else int(torch.multinomial(log.exp(), 1, generator=generator))
            )
            tokens.append(token)
            logprobs.append({token: SimpleNamespace(logprob=float(log[token]))})
            text = self.tokenizer.decode(tokens)
            if token in params.stop_token_ids or any(text.endswith(mark) for mark in params.stop or []):
                reason = "stop"
        return SimpleNamespace(token_ids=tokens, logprobs=logprobs, finish_reason=reason)


def serve(llm):
    """An HTTP server with the paths that VLLMServer uses; returns (url, paths called, stop)."""
    called = []

    class Handler(BaseHTTPRequestHandler):
        def reply(self, body, code=200):
            data = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            self.reply({"data": [{"id": "served"}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
            called.append((self.path, body))
            if self.path == "/v1/completions":
                found = llm.complete(body["prompt"], SimpleNamespace(**body))
                values = [step[token].logprob for step, token in zip(found.logprobs, found.token_ids, strict=True)]
                self.reply(
                    {
                        "choices": [
                            {
                                "token_ids": found.token_ids,
                                "logprobs": {"token_logprobs": values},
                                "finish_reason": found.finish_reason,
                            }
                        ]
                    }
                )
            elif self.path == "/collective_rpc":
                llm.collective_rpc(body["method"], body["kwargs"])
                self.reply({"results": [None]})
            elif self.path in ("/reset_prefix_cache", "/v1/load_lora_adapter"):
                self.reply({})
            else:
                self.reply({"error": "no such path"}, 404)

        def log_message(self, *args):
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 256  # VLLMServer opens 128 connections at once

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}", called, server.shutdown
