"""A scripted vLLM server on this machine: the routes that the engine uses, with weights that are only counted."""

from pathlib import Path

from safetensors import safe_open

from local_server import JsonServer


class VllmServerDouble(JsonServer):
    """Answers completions with the ids 5 and 6.

    `requests` keeps (path, body) of all that was asked. `faults` maps a path to what it answers instead, in order:
    a number is an HTTP status, anything else the body. `held` is what its worker says of its weights, `loaded` the
    names of the tensors that it was handed last, `adapters` the files of each adapter that it has.
    """

    def __init__(self, *, context=64, version="0.32.0", raw_logprobs=False):
        super().__init__(root="")
        self.requests, self.faults = [], {}
        self.context, self.version, self.raw_logprobs = context, version, raw_logprobs
        self.held, self.loaded, self.adapters = None, [], {}

    def answer(self, path, body):
        self.requests.append((path, body))
        waiting = self.faults.get(path)
        return waiting.pop(0) if waiting else self.said(path, body)

    def said(self, path, body):
        if path == "/version":
            return {"version": self.version}
        if path == "/v1/models":
            adapters = [{"id": name, "parent": "base"} for name in self.adapters]
            return {"data": [*adapters, {"id": "base", "parent": None, "max_model_len": self.context}]}
        if path == "/collective_rpc":
            return self.called(body)
        if path == "/reset_prefix_cache":
            return {"success": True}
        if path == "/v1/load_lora_adapter":
            folder = Path(body["lora_path"])
            self.adapters[body["lora_name"]] = sorted(file.name for file in folder.iterdir() if file.suffix != ".md")
            return "Success: it was added."
        if path == "/v1/unload_lora_adapter":
            del self.adapters[body["lora_name"]]
            return "Success: it was removed."
        return self.completed(body)

    def called(self, body):
        if body["method"] == "memfactory_receive":
            folder, self.held = body["args"]
            self.loaded = []
            for file in sorted(Path(folder).iterdir()):
                with safe_open(file, framework="pt") as tensors:
                    self.loaded += sorted(tensors.keys())
        return {"results": [{"version": self.held}]}

    def completed(self, body):
        if body["model"] not in ("base", *self.adapters):
            return 404
        if "return_token_ids" not in body:
            return {"choices": [{"logprobs": {"token_logprobs": [-3.0 if self.raw_logprobs else 0.0]}}]}
        choice = {"token_ids": [5, 6], "prompt_token_ids": body["prompt"], "finish_reason": "length"}
        return {"model": body["model"], "choices": [{**choice, "logprobs": {"token_logprobs": [-1.0, -2.0]}}]}

    def asked(self, path):
        """The bodies of the requests to `path`."""
        return [body for asked, body in self.requests if asked == path]
