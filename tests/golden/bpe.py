"""Byte-pair encodings by the Python package `tokenizers`: three small tokenizer.json, trained here, and the numbers that the package gives texts. GPT-2's form (one
expression for words, a list of pairs as text), Llama 3's (Split by an expression, whole words), and one without words.

    python3 -m pip install tokenizers==0.23.3 && python3 tests/golden/bpe.py > tests/golden/bpe.json
"""
import json

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CORPUS = ["the client trains and the server adds: theirs, they're, don't", "Größenwahn über größere Übungen; größer, am größten", "Пример текста на русском языке, текст",
          "for (int i = 0; i < 10; ++i) {\n  sum += i * 100;\n}\n", "1234567 890 12", "日本語のテキスト、日本", "aaaaaaa aaaa banana ababab aaaaa"] * 3
TEXTS = ["the server trains the client", "They're  here,   aren't they?\n\n  yes", "größte Übung", "новый пример текста", "日本の語 🙂 x²", "x=12345;\r\n\ty = 9", " leading and trailing  ",
         "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "<|end|> is text", "ababababa banananana", "\u00a0no\u2003break\u200d", ""]


def trained(words, size, **model):
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = words
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|end|>"], show_progress=False))
    return tokenizer


def main():
    byte_level = pre_tokenizers.ByteLevel
    forms = {
        "gpt2": trained(byte_level(add_prefix_space=False), 420),
        "prefix": trained(byte_level(add_prefix_space=True), 300),
        "llama3": trained(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), "isolated"), byte_level(add_prefix_space=False, use_regex=False)]), 420, ignore_merges=True),
        "no_words": trained(byte_level(add_prefix_space=False, use_regex=False), 330),
    }
    cases = []
    for name, tokenizer in forms.items():
        document = json.loads(tokenizer.to_str())
        if name == "prefix":  # as older files have them
            document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]
        plain = Tokenizer.from_str(json.dumps({**document, "added_tokens": []}))  # the special token's name is text
        cases.append({"name": name, "tokenizer": document, "vocabulary": tokenizer.get_vocab_size(), "texts": [{"text": text, "tokens": plain.encode(text).ids} for text in TEXTS]})
    print(json.dumps(cases, ensure_ascii=True, separators=(",", ":")))


if __name__ == "__main__":
    main()
