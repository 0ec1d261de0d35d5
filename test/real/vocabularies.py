"""Real tokenizers as GGUF files, and what they make of many texts beside those that this project rebuilt.

    vocabularies.py make FOLDER JSON     writes FOLDER/NAME.gguf for each tokenizer: those of JSON, {name: folder of tokenizer.json}, and
                                       Mistral's own; then FOLDER/texts.json; prints the names as JSON
    vocabularies.py compare FOLDER OURS JSON  prints {name: [texts, ids, the first texts whose ids or decoded text differ]} for
                                       OURS/NAME/tokenizer.json, and writes the original's ids of each text to FOLDER/NAME.json

The vocabulary and the merges are written by gguf-py; kinds of tokens as convert_hf_to_gguf.py gives them.
"""

import json
import random
import shutil
import sys
from pathlib import Path

import gguf
import mistral_common
from gguf.vocab import MistralVocab, SpecialVocab
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from tokenizers import Tokenizer

# Those that are byte-level, by llama.cpp's name of their splitting; the others' models and architectures.
splits = {"llama3": "llama-bpe", "qwen3": "qwen2", "gptoss": "gpt-4o"}
others = {"gemma3": ("llama", "gemma3"), "minilm": ("bert", "bert")}
mistrals = {
    "mistral-v1": "tokenizer.model.v1",
    "mistral-v3": "mistral_instruct_tokenizer_240323.model.v3",
    "tekken": "tekken_240911.json",
}
space = "\u2581"


def texts():
    """Hard lines first, then lines at random of many scripts, then this repository's pages."""
    hard = [
        "Hello, world!", "", " ", "  leading", "trailing  ", "a  b   c    d     e", "\ttab\t\ttabs", "one\ntwo\r\nthree\n\n\nfour \n five",
        "I'm you're HE'S they'Ll 'twas don’t", "0 12 345 6789 1234567890 3.14159 -1e-9 0x1F 1,000,000 ٣٤٥ ½ ²", "CamelCase snake_case kebab-case",
        "naïve café e\u0301 Å A\u030a ﬁ ﬂ Ω Ω", "Straße ẞ İstanbul ıi", "你好，世界！ 日本語のテキスト 한국어 텍스트", "ภาษาไทย हिन्दी தமிழ் עברית العربيّة",
        "👍🏽 👩‍👩‍👧‍👦 🏴‍☠️ 🇩🇪 ☕️", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𓀀 𒀀 \U000e0001 \U0010ffff", "\u00a0nbsp\u3000wide\u2028line\u2029par\u200bzero\u200dj\ufeffbom", "\x00\x01\x1f\x7f\x80",
        "\ue000 \ufdd0 \u0378 unassigned", "def f(x):\n    return x ** 2  # comment\n\n\nclass A:\n\tpass\n", "<div class=\"a\">&amp;</div>", "a\u2581b \u2581\u2581 c",
        "https://example.org/a?b=c&d=%20#e", "!!!???...---___***", "ALLCAPS lower Title mIxEd", "x" * 300, "\n" * 20, " " * 70, "##ing [MASK] [CLS] ##",
    ]  # fmt: skip
    rng = random.Random(7)
    ranges = [(32, 127), (160, 0x250), (0x370, 0x590), (0x600, 0x700), (0x900, 0xE80), (0x3040, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4)]
    ranges += [(0x2000, 0x2C00), (0x1F300, 0x1FA00), (0x10000, 0x12000), (0xE000, 0xE100), (9, 14)]
    lines = []
    for _ in range(1500):
        pieces = []
        for _ in range(rng.randint(1, 8)):
            low, high = rng.choice(ranges)
            pieces.append("".join(chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 9))))
        lines.append(rng.choice(["", " ", "  ", "\n"]).join(pieces))
    pages = [page.read_text() for page in sorted(Path(__file__).parents[2].glob("docs/*.md"))]
    return hard + lines + pages


def mistral(name):
    return Path(mistral_common.__file__).parent / "data" / mistrals[name]


def write_json(path, name, source):
    original = json.loads((source / "tokenizer.json").read_text())
    model, arch = others.get(name, ("gpt2", "llama"))
    added = {token["id"]: token for token in original["added_tokens"]}
    ids = {token: id for token, id in original["model"]["vocab"].items()} | {token["content"]: id for id, token in added.items()}
    named = {id: token for token, id in ids.items()}
    tokens, kinds, scores = [], [], []
    for id in range(max(named) + 1):
        token, kind, score = named.get(id, f"[PAD{id}]"), gguf.TokenType.NORMAL, float(min(0, 258 - id)) if id >= 259 else 0.0
        if id not in named:
            kind = gguf.TokenType.UNUSED
        elif id in added:
            kind = gguf.TokenType.CONTROL if added[id]["special"] else gguf.TokenType.USER_DEFINED
            score = -1000.0
            if kind == gguf.TokenType.USER_DEFINED:
                token = token.replace(space, " ")
        elif model == "llama" and len(token) == 6 and token.startswith("<0x"):
            kind = gguf.TokenType.BYTE
        if model == "llama" and token == "<unk>":
            kind = gguf.TokenType.UNKNOWN
        if model == "bert" and not (token.startswith("[") and token.endswith("]")):
            token = token[2:] if token.startswith("##") else space + token
        tokens.append(token), kinds.append(kind), scores.append(score)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_tokenizer_model(model)
    if model == "gpt2":
        writer.add_tokenizer_pre(splits[name])
    writer.add_token_list(tokens)
    if model == "llama":
        writer.add_token_scores(scores)
        writer.add_add_space_prefix(arch != "gemma3")
    writer.add_token_types(kinds)
    SpecialVocab(source, load_merges=model == "gpt2", n_vocab=len(tokens)).add_to_gguf(writer, quiet=True)
    close(writer)


def write_mistral(path, name, folder):
    source = folder / f"{name}.source"
    source.mkdir()
    shutil.copy(mistral(name), source / ("tekken.json" if name == "tekken" else mistrals[name]))
    vocab = MistralVocab(source)
    tokens, scores, kinds = zip(*vocab.all_tokens())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(vocab.gguf_tokenizer_model)
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    if name == "tekken":
        writer.add_tokenizer_pre("tekken")
        writer.add_token_merges(vocab.extract_vocab_merges_from_model())
    writer.add_bos_token_id(vocab.bos_id)
    writer.add_eos_token_id(vocab.eos_id)
    writer.add_unk_token_id(vocab.unk_id)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    close(writer)


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make(folder, sources):
    folder, sources = Path(folder), json.loads(sources)
    (folder / "texts.json").write_text(json.dumps(texts()))
    for name, source in sources.items():
        write_json(folder / f"{name}.gguf", name, Path(source))
    for name in mistrals:
        write_mistral(folder / f"{name}.gguf", name, folder)
    print(json.dumps([*sources, *mistrals]))


def reference(name, sources):
    """Ids of a text as the original gives them, without what begins every text, and the text of ids."""
    if name in sources:
        tokenizer = Tokenizer.from_file(f"{sources[name]}/tokenizer.json")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return lambda text: tokenizer.encode(text, add_special_tokens=False).ids, lambda ids: tokenizer.decode(ids)
    tokenizer = MistralTokenizer.from_file(str(mistral(name))).instruct_tokenizer.tokenizer
    if name == "tekken":
        return lambda text: tokenizer.encode(text, bos=False, eos=False), tokenizer.decode
    model = tokenizer._model  # SentencePiece itself
    return model.encode, model.decode


def compare(folder, ours, sources):
    folder, sources, found = Path(folder), json.loads(sources), {}
    lines = json.loads((folder / "texts.json").read_text())
    for name in [*sources, *mistrals]:
        encode, decode = reference(name, sources)
        rebuilt = Tokenizer.from_file(f"{ours}/{name}/tokenizer.json")
        expected, differ = [encode(text) for text in lines], []
        for text, ids in zip(lines, expected):
            got = rebuilt.encode(text, add_special_tokens=False).ids
            if got != ids:
                differ.append([text, ids, got])
            elif rebuilt.decode(ids) != decode(ids):
                differ.append([text, decode(ids), rebuilt.decode(ids)])
        found[name] = [len(lines), sum(map(len, expected)), len(differ), [str(one)[:400] for one in differ[:3]]]
        (folder / f"{name}.json").write_text(json.dumps(expected))
    print(json.dumps(found))


if __name__ == "__main__":
    {"make": make, "compare": compare}[sys.argv[1]](*sys.argv[2:])
