"""A chat endpoint on this machine that reads with recurrent memory as a model would, for tests of whole commands."""

import json
import re

from local_server import JsonServer

NAMES = ("Alice", "Bob", "Carol", "Dora")
CODES = ("seven", "nine", "three", "five")


def rows():
    """One question about each name, over a text that holds every code."""
    text = " ".join(f"The code of {name} is {code}." for name, code in zip(NAMES, CODES))
    return [
        {"context": text, "input": f"What is the code of {name}?", "answers": [code], "num_docs": 4, "index": index}
        for index, (name, code) in enumerate(zip(NAMES, CODES))
    ]


def reading(request):
    """Keeps the code that is asked for in memory and answers with it; Dora's is never found."""
    prompt = request["messages"][-1]["content"]
    name = re.search(r"What is the code of (\w+)\?", prompt).group(1)
    memory = re.search(r"<memory>\n(.*?)\n</memory>", prompt, re.DOTALL).group(1)
    if "<section>" not in prompt:
        return f"It is \\boxed{{{memory}}}."
    found = re.search(rf"The code of {name} is (\w+)\.", prompt.partition("<section>")[2])
    return found.group(1) if found and name != "Dora" else memory


class ChatServer(JsonServer):
    """Answers chat completions with `reply(request)`; a number is sent as that HTTP status. `requests` keeps them."""

    def __init__(self, reply=reading):
        super().__init__()
        self.reply = reply
        self.requests = []

    def answer(self, path, body):
        self.requests.append(body)
        said = self.reply(body)
        if isinstance(said, int):
            return said
        return {"choices": [{"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]}


def write_tokenizer(path):
    """A tokenizer file that takes words and full stops apart; a sentence of `rows` has seven tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    return path


def config_text(url, tokenizer, *, more=""):
    """A config whose policy speaks through the endpoint at `url`, in sections of 14 tokens: two of the sentences."""
    return f"""
agent: {{name: memory_agent, chunk_tokens: 14}}
env: {{name: longcontext, rewards: {{boxed_em: 1.0}}}}
engine: {{kind: openai, model: reader, base_url: "{url}", api_key_env: "", retries: 0, tokenizer: "{tokenizer}"}}
eval: {{samples: 2, temperature: 0.5}}
{more}
"""


TALK = [
    {"speaker": "Ann", "text": "The code of Bob is nine.", "dia_id": "D1:1", "session": "1"},
    {"speaker": "Ann", "text": "The code of Bob is ten now.", "dia_id": "D2:1", "session": "2"},
]


def managing(request):
    """Remembers the last code that it hears, in one item that it updates."""
    prompt = request["messages"][-1]["content"]
    if '"memory_list"' in prompt:
        code = re.findall(r"code of Bob is (\w+)", prompt)[-1]
        return json.dumps({"memory_list": [{"key": "code", "value": f"Bob's code is {code}"}]})
    if '"operations"' in prompt:
        known = "Bob's code is nine" in prompt.partition("<new>")[0]
        drop = [{"id": 1, "op": "DEL"}, {"id": 2, "op": "ADD"}] if known else [{"id": 1, "op": "ADD"}]
        return json.dumps({"operations": drop})
    return "**Answer:** " + re.findall(r"code is (\w+)", prompt)[-1]
