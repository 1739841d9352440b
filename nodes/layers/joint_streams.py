"""A prompt per block where text and image tokens attend to each other: parallel text streams (Flux, Chroma).

In these networks every block rewrites the text, so "block l reads another text" cannot be a swap of one input. Instead
each distinct prompt q keeps a text stream T_q of its own. At block l, whose prompt is p:

    (I', T'_p) = block(I, T_p)                  the ordinary block: the image sees prompt p alone
    T'_q = the text half of block(I, T_q)       for every other q that a later block still reads

So at every depth each T_q is what a text of this network is at that depth, given this picture, and equal prompts are
the plain run. The text half needs only the text's own queries and MLP, and the keys and values of the image, which the
ordinary block has computed: S prompts cost 1 + (S - 1) N_text / (N_text + N_image) of the blocks instead of S.

The network itself carries the base prompt's stream from block to block; the others wait here.
"""

import torch

_BASE = 0  # the key of the base prompt's stream; other streams have their text's id


class _Streams:
    """The text streams of one evaluation. `at(place, inner)` is the replacement of the block at this place."""

    def __init__(self, reader, network: torch.nn.Module, places: list[tuple[str, int]], tokens: int):
        self.rows = [rows for _, rows in reader.chunks]
        self.places, self.tokens = places, tokens
        texts = {id(text): text for choice in reader.choices for text in choice.values()}
        self.lengths = {_BASE: tokens} | {key: text["cross_attn"].shape[1] for key, text in texts.items()}
        self.reads = [[_key(choice, place) for place in places] for choice in reader.choices]
        self.last = [{key: len(reads) - 1 - reads[::-1].index(key) for key in reads} for reads in self.reads]
        self.waiting = []
        for rows, reads in zip(self.rows, self.reads, strict=True):
            count = rows.stop - rows.start
            own = {key: texts[key] for key in dict.fromkeys(reads) if key != _BASE}
            self.waiting.append(
                {key: _embedded(network, reader.tensor(text, "cross_attn", count)) for key, text in own.items()}
            )
        self.kept = None  # the image's keys and values of the ordinary block, before rotation
        self.recording, self.reading = False, 0

    def attention_patch(self, q, k, v, pe=None, attn_mask=None, extra_options=None):
        """Keeps the image's keys and values of an ordinary block, and lends them to the text halves after it."""
        text = self.reading
        if self.recording:
            self.kept = k[:, :, text:], v[:, :, text:]
        if self.recording or self.kept is None:
            return {}
        k, v = (torch.cat((own[:, :, :text], lent), dim=2) for own, lent in zip((k, v), self.kept, strict=True))
        from comfy.ldm.flux.math import apply_rope1

        rotated = apply_rope1(q, pe[:, :, : q.shape[2]]), apply_rope1(k, pe)
        return {"q": rotated[0], "k": rotated[1], "v": v, "pe": None}

    def at(self, place: tuple[str, int], inner):
        """A replacement for the block at this place. inner: what replaced it before, or None."""
        number, single = self.places.index(place), place[0] == "single_block"

        def run(args, extra):
            def block(changed):
                return extra["original_block"](changed) if inner is None else inner(changed, extra)

            return self._run(number, single, args, block)

        return run

    def _run(self, number: int, single: bool, args: dict, block) -> dict:
        reads = [each[number] for each in self.reads]
        others = [
            [key for key in (_BASE, *waiting) if key != read and last.get(key, -1) > number]
            for waiting, read, last in zip(self.waiting, reads, self.last, strict=True)
        ]
        if not any(others) and all(read == _BASE for read in reads):
            return block(args)
        _refuse(args, self.lengths)
        base = args["img"][:, : self.tokens] if single else args["txt"]
        image = args["img"][:, self.tokens :] if single else args["img"]
        streams = [{_BASE: base[rows], **waiting} for rows, waiting in zip(self.rows, self.waiting, strict=True)]
        self.recording = any(others)
        image, texts = self._joint(single, args, block, self._text(streams, reads), image)
        self.recording = False
        results = [{read: texts[rows]} for read, rows in zip(reads, self.rows, strict=True)]
        for turn in range(max(map(len, others))):
            keys = [keys[turn] if turn < len(keys) else read for keys, read in zip(others, reads, strict=True)]
            texts = self._text_half(single, args, block, self._text(streams, keys))
            for key, result, rows in zip(keys, results, self.rows, strict=True):
                result.setdefault(key, texts[rows])
        self.kept = None
        streams = [{**old, **new} for old, new in zip(streams, results, strict=True)]
        self.waiting = [{key: text for key, text in each.items() if key != _BASE} for each in streams]
        base = torch.cat([each[_BASE] for each in streams])
        return {"img": torch.cat((base, image), dim=1)} if single else {"img": image, "txt": base}

    def _text(self, streams: list[dict], keys: list[int]) -> torch.Tensor:
        """The streams of these keys under each other, as a tensor of their own: blocks write into what they get."""
        texts = [stream[key] for stream, key in zip(streams, keys, strict=True)]
        return texts[0].clone() if len(texts) == 1 else torch.cat(texts)

    def _joint(self, single: bool, args: dict, block, text: torch.Tensor, image: torch.Tensor):
        """The ordinary block on this text: the image and the text after it."""
        self.reading = count = text.shape[1]
        changed = {**args, "pe": self._positions(args["pe"], count)}
        if not single:
            out = block({**changed, "img": image, "txt": text})
            return out["img"], out["txt"]
        options = {**args["transformer_options"], "img_slice": [count, count + image.shape[1]]}
        out = block({**changed, "img": torch.cat((text, image), dim=1), "transformer_options": options})["img"]
        return out[:, count:], out[:, :count]

    def _text_half(self, single: bool, args: dict, block, text: torch.Tensor) -> torch.Tensor:
        """What the block makes of the text, beside the image whose keys and values were kept."""
        self.reading = count = text.shape[1]
        changed = {**args, "pe": self._positions(args["pe"], count)}
        if single:
            return block({**changed, "img": text})["img"]
        # A double block wants an image: one token, whose keys and values are replaced and whose result is not used.
        return block({**changed, "txt": text, "img": text.new_zeros(text.shape[0], 1, text.shape[2])})["txt"]

    def _positions(self, pe: torch.Tensor, count: int) -> torch.Tensor:
        """Position factors for a text of another length: all of a text's positions are zero in these networks."""
        if count == self.tokens:
            return pe
        first = pe[:, :, :1].expand(-1, -1, count, *[-1] * (pe.ndim - 3))
        return torch.cat((first, pe[:, :, self.tokens :]), dim=2)


def _key(choice: dict, place: tuple[str, int]) -> int:
    return id(choice[place]) if place in choice else _BASE


def _refuse(args: dict, lengths: dict[int, int]) -> None:
    """ValueError for inputs of a block that hold for the base prompt's tokens alone."""
    if args.get("attn_mask") is not None:
        raise ValueError(
            "A prompt per block is not possible together with an attention mask (as image prompts with a mask set it), "
            "which knows the tokens of the base prompt alone."
        )
    if len(set(lengths.values())) > 1 and args["transformer_options"].get("reference_image_num_tokens"):
        raise ValueError(
            "With reference latents all prompts must have as many tokens as the base prompt, because their noise "
            f"levels are counted by place; they have {', '.join(map(str, sorted(set(lengths.values()))))}."
        )


def _embedded(network: torch.nn.Module, context: torch.Tensor) -> torch.Tensor:
    """A text as it enters the first block."""
    norm = getattr(network, "txt_norm", None)
    return network.txt_in(context if norm is None else norm(context))


def refuse_positions(network: torch.nn.Module) -> None:
    """ValueError for a Flux whose text tokens have positions, such as LongCat-Image."""
    if getattr(network.params, "txt_ids_dims", None):
        raise ValueError("A prompt per layer is not possible for this Flux: its text tokens have positions.")


def with_streams(reader, network: torch.nn.Module, options: dict, context: torch.Tensor) -> dict:
    """A copy of `transformer_options` in which each block of a Flux or Chroma reads its own prompt.

    context: the base prompt [rows, T, D] as the network gets it. ValueError where that cannot be exact.
    """
    patches = options.get("patches", {})
    if patches.get("post_input"):
        raise ValueError(
            "A prompt per block is not possible together with a node that adds tokens at the input of the model "
            "(a post_input patch, as style references do): they would belong to the base prompt alone."
        )
    refuse_positions(network)
    places = [("double_block", i) for i in range(len(network.double_blocks))]
    places += [("single_block", i) for i in range(len(network.single_blocks))]
    streams = _Streams(reader, network, places, context.shape[1])
    table = options.get("patches_replace", {})
    blocks = dict(table.get("dit", {}))
    for place in places:
        blocks[place] = streams.at(place, blocks.get(place))
    # Last of all patches, so that what others do to keys and values is lent too.
    attention = [*patches.get("attn1_patch", []), streams.attention_patch]
    return {
        **options,
        "patches": {**patches, "attn1_patch": attention},
        "patches_replace": {**table, "dit": blocks},
    }


FAMILIES = {"flux.model.Flux": with_streams, "chroma.model.Chroma": with_streams}
