"""GALIP Sampler: text and noise to pictures, one pass each."""

from ...galip import seeded_noise
from .._api import io
from .inputs import as_latent, noise_vectors, sentences
from .model import CATEGORY, GalipSocket

MAX_SEED = 0xFFFFFFFFFFFFFFFF


class GALIPSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_GALIPSampler",
            display_name="GALIP Sampler",
            category=CATEGORY,
            description=(
                "Draws pictures from a text with a GALIP generator: one pass each, no steps, no CFG. Official "
                "checkpoints draw 224×224 pixels, always; enlarge or refine them with other nodes."
            ),
            search_aliases=["GALIP", "GAN sampler", "one step", "text to image", "fast draft", "truncation trick"],
            inputs=[
                GalipSocket.Input("galip", tooltip="The generator, from GALIP Loader."),
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="The text, from CLIP Text Encode with the CLIP of GALIP CLIP. Only its pooled output is "
                    "used.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip="Seed of the first picture's noise; every further picture of the batch takes the next "
                    "seed, so each can be drawn again alone.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=256,
                    tooltip="Number of pictures, 1 to 256. They cost the same time each: on a CPU they are drawn one "
                    "by one, on a GPU 16 at once.",
                ),
                io.Float.Input(
                    "truncation",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="1 is off: normal noise, as in the paper. Below 1, noise outside ±2 is drawn again and all "
                    "of it multiplied by this: more typical pictures, less variety. Usual 0.7 to 0.9; 0 gives one "
                    "picture per text.",
                ),
                io.Latent.Input(
                    "noise",
                    optional=True,
                    tooltip="Noise to draw from in place of seed, batch_size and truncation, which are then not used: "
                    "the noise output of another GALIP Sampler, to draw another text in the same style.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="The pictures, 224×224 pixels from official checkpoints."),
                io.Latent.Output(
                    display_name="noise",
                    tooltip="The noise they were drawn from, one vector per picture. Latent nodes can pick, batch, mix "
                    "and save it; it is not for VAE Decode.",
                ),
            ],
        )

    @classmethod
    def execute(cls, galip, conditioning, seed=0, batch_size=1, truncation=1.0, noise=None) -> io.NodeOutput:
        sentence = sentences(conditioning, galip.dims)
        if noise is not None:
            vectors = noise_vectors(noise, galip.dims)
        elif batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; give at least 1.")
        else:
            vectors = seeded_noise(
                [(seed + index) & MAX_SEED for index in range(batch_size)], galip.dims.nz, truncation
            )
        if len(sentence) not in (1, len(vectors)):
            raise ValueError(
                f"The conditioning has {len(sentence)} texts for {len(vectors)} pictures; give one text, or one for "
                f"each picture."
            )
        image = galip.draw(vectors, sentence.expand(len(vectors), -1))
        return io.NodeOutput(image, as_latent(vectors))
