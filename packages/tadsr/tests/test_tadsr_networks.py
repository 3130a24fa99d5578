"""Networks: published names and sizes, taps, sizes that differ, autoencoders, converters."""

import inspect
import json
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.embeddings import get_timestep_embedding

from tadsr.models.attention import published_mask, shift_mask, to_windows
from tadsr.models.autoencoders import FaceVQModel, IdentityAutoencoder, PixelUnshuffleAutoencoder, vq_f4
from tadsr.models.compact import CompactDenoiser
from tadsr.models.networks import ResShiftUNet
from tadsr.models.pretrained import FAMILIES, clean, read_checkpoint, unet_from_resshift, vq_from_resshift, vq_key
from tenfold import UserError

GOLDEN = Path(__file__).parent / "golden"


def about(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def configuration(name):
    options = inspect.signature(ResShiftUNet).parameters
    return {key: value for key, value in about(name)["config"].items() if key in options}


@pytest.mark.parametrize(
    ("name", "family"), [("keys_resshift_realsrx4", "realsrx4"), ("keys_resshift_faceir", "faceir")]
)
def test_unet_has_the_published_keys(name, family):
    with torch.device("meta"):
        unet = ResShiftUNet(**FAMILIES[family])
    wanted = {
        key: shape
        for key, shape in about(name)["keys"].items()
        if not key.endswith(("relative_position_index", "attn_mask"))
    }
    assert {key: list(value.shape) for key, value in unet.state_dict().items()} == wanted
    assert sum(each.numel() for each in unet.parameters()) == about(name)["n_params"]
    assert unet.multiple == 64
    assert unet.tap_channels == (160, 320, 320, 640, 640)


def test_autoencoder_has_the_published_keys():
    with torch.device("meta"):
        vae = vq_f4()
    keys = about("keys_autoencoder_vq_f4")
    table = keys.get("keys", keys)
    mine = {key: tuple(value.shape) for key, value in vae.state_dict().items()}
    renamed = {vq_key(key, 3): entry for key, entry in table.items()}
    assert renamed.keys() == mine.keys()
    for key, entry in table.items():
        assert vq_key(key, 3) == entry["diffusers"]
    assert sum(each.numel() for each in vae.parameters()) == 55_322_782


def test_face_autoencoder_has_its_depths():
    with torch.device("meta"):
        vae = FaceVQModel()
    assert [len(block.resnets) for block in vae.encoder.down_blocks] == [1, 2, 3, 4]
    assert [len(block.resnets) for block in vae.decoder.up_blocks] == [5, 4, 3, 2]


def tiny_vq():
    options = about("vq_tiny")["ddconfig"]
    levels = len(options["ch_mult"])
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(options["ch"] * mult for mult in options["ch_mult"]),
        layers_per_block=options["num_res_blocks"],
        latent_channels=3,
        num_vq_embeddings=64,
        vq_embed_dim=3,
        norm_num_groups=32,
        scaling_factor=1.0,
    )


@torch.no_grad()
def test_autoencoder_outputs(golden):
    arrays = {key: torch.from_numpy(value) for key, value in golden("vq_tiny").items()}
    state = {key[3:]: value for key, value in arrays.items() if key.startswith("sd/")}
    vae = vq_from_resshift(state, tiny_vq())
    torch.testing.assert_close(vae.encode(arrays["x"]).latents, arrays["latent"], atol=1e-4, rtol=0)
    torch.testing.assert_close(vae.decode(arrays["latent"]).sample, arrays["decoded"], atol=1e-4, rtol=0)
    decoded = []
    hook = vae.post_quant_conv.register_forward_hook(lambda *a: decoded.append(a[1][0]))
    vae.decode(vae.encode(arrays["x"]).latents)
    hook.remove()
    vectors = decoded[0].movedim(1, -1).reshape(-1, 3)
    apart = (vectors[:, None] - vae.quantize.embedding.weight[None]).abs().amax(-1)
    assert apart.amin(1).max() < 1e-5, "rows of the codebook only"
    plain = vae.decode(arrays["latent"], force_not_quantize=True).sample
    torch.testing.assert_close(plain, arrays["decoded_noquant"], atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="do not fit VQModel"):
        vq_from_resshift({key: value for key, value in state.items() if "mid" not in key}, tiny_vq())


def rounding(network, wanted, part=""):
    """How far two float32 evaluations of a network may be apart, whatever order a processor sums in.

    Along the network each output went through sums of n products in all. Each rounds by at most half a unit in the last place, 2^-24
    of the number, up or down: a random walk of n such steps. The largest output, five or so times the usual one, stands for the
    spread over the many outputs and for the second evaluation.

    Args:
        network: whose weights say how long the sums are.
        wanted: the outputs.
        part: names of the weights that are used begin with one of these, separated by spaces; all by default.
    """
    begins = tuple(part.split()) or ("",)
    longest = sum(
        each[0].numel() for name, each in network.named_parameters() if each.ndim > 1 and name.startswith(begins)
    )
    return 2.0**-24 * longest**0.5 * float(wanted.abs().max())


@torch.no_grad()
def test_the_published_outputs_of_the_swin_unet(golden):
    arrays = {key: torch.from_numpy(value) for key, value in golden("unet_tiny").items()}
    unet = unet_from_resshift(
        {key[3:]: value for key, value in arrays.items() if key.startswith("sd/")}, configuration("unet_tiny")
    )
    for kind in ("", "_rect"):
        x, t, lq, wanted = (arrays[name + kind] for name in ("x", "t", "lq", "out"))
        bound = rounding(unet, wanted)
        torch.testing.assert_close(unet(x, t, lq).sample, wanted, atol=bound, rtol=0)
        # The second call takes its masks from the cache.
        torch.testing.assert_close(unet(x, t, lq).sample, wanted, atol=bound, rtol=0)
    for width in (32, 33):
        have = get_timestep_embedding(arrays["temb_t"], width, flip_sin_to_cos=True, downscale_freq_shift=0)
        torch.testing.assert_close(have, arrays[f"temb{width}"], atol=2e-5, rtol=0)


@torch.no_grad()
def test_the_published_taps_of_the_swin_unet(golden, seeded_unet):
    arrays = {key: torch.from_numpy(value) for key, value in golden("unet4_taps").items()}
    inputs = arrays["x"], arrays["t"], arrays["lq"]
    bound = rounding(seeded_unet, arrays["out"])
    assert bound < 5e-5
    torch.testing.assert_close(seeded_unet(*inputs).sample, arrays["out"], atol=bound, rtol=0)
    for index, tap in enumerate(seeded_unet(*inputs, return_features=True)):
        bound = rounding(seeded_unet, tap, "time_embed input_blocks middle_block")
        assert list(tap.shape) == arrays[f"tap{index}_shape"].tolist()
        torch.testing.assert_close(tap.mean((2, 3)), arrays[f"tap{index}_mean"], atol=bound, rtol=0)
        torch.testing.assert_close(tap.flatten(2).std(2), arrays[f"tap{index}_std"], atol=bound, rtol=0)
        if f"tap{index}" in arrays:
            torch.testing.assert_close(tap, arrays[f"tap{index}"], atol=bound, rtol=0)


@pytest.mark.parametrize("height", [4, 8, 12])
@pytest.mark.parametrize("width", [4, 8])
def test_masks_of_shifted_windows(height, width):
    side, shift = 4, 2
    usual, published = shift_mask(height, width, side, shift), published_mask(height, width, side, shift)
    assert usual.shape == published.shape == (height * width // 16, 16, 16)
    # Where the positions of a window came from, before the shift.
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = to_windows(torch.stack([y, x])[None].roll((-shift, -shift), (2, 3)).float(), side)
    apart = (place[:, :, None] - place[:, None]).abs().amax(-1) >= side
    torch.testing.assert_close(usual < 0, apart if min(height, width) > side else usual < 0)
    rows = published.unflatten(0, (height // side, width // side))
    assert rows[:-1].abs().max() == 0 if height > side else True
    assert (rows[-1] == rows[-1, :1]).all()


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return ResShiftUNet(**configuration("unet_tiny")).eval()


@torch.no_grad()
def test_taps_are_the_encoders_and_the_decoder_does_not_run(unet):
    seen = []
    hooks = [unet.input_blocks[index].register_forward_hook(lambda *a: seen.append(a[2])) for index in unet.taps]
    hooks.append(unet.middle_block.register_forward_hook(lambda *a: seen.append(a[2])))
    x, lq, t = torch.randn(1, 3, 16, 16), torch.randn(1, 3, 16, 16), torch.tensor([3])
    unet(x, t, lq)
    whole = list(seen)
    decoder = []
    hooks.append(unet.output_blocks[0].register_forward_hook(lambda *a: decoder.append(a)))
    features = unet(x, t, lq, return_features=True)
    for hook in hooks:
        hook.remove()
    assert not decoder
    assert len(features) == len(whole)
    assert all(torch.equal(a, b) for a, b in zip(features, whole, strict=True))
    assert tuple(each.shape[1] for each in features) == unet.tap_channels


@torch.no_grad()
def test_unet_takes_other_sizes_and_a_batch_is_its_pictures(unet):
    x, lq, t = torch.randn(2, 3, 24, 16), torch.randn(2, 3, 24, 16), torch.tensor([0, 9])
    both = unet(x, t, lq).sample
    alone = torch.cat([unet(x[i : i + 1], t[i : i + 1], lq[i : i + 1]).sample for i in range(2)])
    torch.testing.assert_close(both, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_a_checkpoint_in_the_public_layout_loads(unet, tmp_path, prefix):
    state = {prefix + key: value for key, value in unet.state_dict().items()}
    state[f"{prefix}input_blocks.1.1.blocks.1.attn_mask"] = torch.zeros(16, 16, 16)
    state[f"{prefix}input_blocks.1.1.blocks.1.attn.relative_position_index"] = torch.zeros(16, 16)
    path = tmp_path / "resshift.pth"
    torch.save({"state_dict": state} if prefix else state, path)
    again = unet_from_resshift(path, configuration("unet_tiny"))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), unet.parameters(), strict=True))


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"missing.*realsrx4"):
        unet_from_resshift({"input_blocks.0.0.weight": torch.zeros(160, 6, 3, 3)}, configuration("unet_tiny"))
    with pytest.raises(UserError, match="autoencoder"):
        unet_from_resshift({"encoder.conv_in.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="UNet"):
        vq_from_resshift({"input_blocks.0.0.weight": torch.zeros(1)})
    path = tmp_path / "code.pth"
    torch.save({"state_dict": Path("/")}, path)
    with pytest.raises(UserError, match="could run code"):
        read_checkpoint(path)
    torch.save({"state_dict": {"a": torch.tensor(torch.nan)}}, path)
    with pytest.raises(UserError, match="NaN or infinite"):
        read_checkpoint(path)
    assert clean({"module.a": torch.zeros(1), "b.attn_mask": torch.zeros(1)}).keys() == {"a"}


@pytest.mark.parametrize("vae", [IdentityAutoencoder(), PixelUnshuffleAutoencoder()])
def test_weightless_autoencoders_invert(vae):
    x = torch.randn(2, 3, 8, 12)
    torch.testing.assert_close(vae.decode(vae.encode(x).latents).sample, x, atol=1e-6, rtol=0)


@torch.no_grad()
def test_the_compact_denoiser_starts_as_bicubic_and_saves_itself(tmp_path):
    torch.manual_seed(0)
    net, vae = CompactDenoiser(channels=32, depth=4), PixelUnshuffleAutoencoder()
    lq = torch.rand(1, 3, 6, 5)
    z = net(torch.randn(1, 48, 6, 5), 14, lq).sample
    bicubic = torch.nn.functional.interpolate(lq, scale_factor=4, mode="bicubic")
    torch.testing.assert_close(vae.decode(z).sample, bicubic, atol=1e-5, rtol=0)
    assert len(net(torch.randn(1, 48, 6, 5), 3, lq, return_features=True)) == len(net.tap_channels)
    net.save_pretrained(tmp_path)
    again = CompactDenoiser.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def test_a_shallow_compact_denoiser_is_refused():
    with pytest.raises(ValueError, match="at least 4"):
        CompactDenoiser(depth=3)
