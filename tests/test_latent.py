"""The first stage of latent diffusion, text in a U-Net, and what joins them to the rest of the library."""

import math

import pytest
import torch
from torch import nn

import tinydiff as td
from tinydiff import models
from tinydiff.models import autoencoder as ae
from tinydiff.models import text

IMAGES = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
KINDS = pytest.mark.parametrize("kind", [ae.KLAutoencoder, ae.VQAutoencoder])


def small(kind=ae.KLAutoencoder, seed=0, **settings):
    torch.manual_seed(seed)
    return kind(**dict(width=8, mults=(1, 2, 2)) | settings).eval()


# ---- autoencoders --------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("mults, factor", [((1,), 1), ((1, 2), 2), ((1, 2, 2), 4), ((1, 1, 2, 2), 8)])
def test_shapes_follow_the_factor(kind, mults, factor):
    a, x = small(kind, mults=mults, latent=3), torch.randn(2, 1, 32, 48)
    z = a.encode(x)
    assert a.factor == factor and z.shape == (2, 3, 32 // factor, 48 // factor)
    assert a.decode(z).shape == x.shape == a(x).x.shape and a(x).penalty.shape == (2,)
    with pytest.raises(ValueError, match=r"x must be \(b, 1, h, w\)"):
        a.encode(torch.randn(2, 3, 32, 32))
    with pytest.raises(ValueError, match=r"z must be \(b, 3, h, w\)"):
        a.decode(torch.randn(2, 4, 8, 8))
    if factor > 1:
        with pytest.raises(ValueError, match=f"divide by {factor}"):
            a.encode(torch.randn(2, 1, 32, 32 + factor // 2))


def test_the_divergence_is_that_of_gaussians():
    """Zero for N(0, 1), and the Monte-Carlo mean of log q - log p elsewhere."""
    zero = torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    assert ae.DiagonalGaussian(zero, zero).kl().abs().max() == 0
    mean, logvar = torch.tensor([0.7, -1.2]).double().view(2, 1, 1, 1), torch.tensor([-0.5, 0.8]).double()
    q = ae.DiagonalGaussian(mean, logvar.view(2, 1, 1, 1))
    z = ae.DiagonalGaussian(*(v.expand(2, 1, 1, 400_000) for v in (mean, q.logvar))).sample(torch.Generator())
    log_q = -((z - mean) ** 2) / (2 * q.logvar.exp()) - q.logvar / 2
    gap = log_q + z**2 / 2
    error = gap.std(dim=(1, 2, 3)) / math.sqrt(z[0].numel())
    assert ((gap.mean(dim=(1, 2, 3)) - q.kl()).abs() < 4 * error).all() and (error < 5e-3).all()


def test_a_logvar_is_clamped_as_officially():
    far = torch.tensor([-100.0, 100.0]).view(1, 2, 1, 1)
    assert ae.DiagonalGaussian(torch.zeros_like(far), far).logvar.flatten().tolist() == [-30, 20]


def test_latents_are_drawn_in_training_and_the_mean_afterwards():
    a = small()
    q = a.posterior(IMAGES)
    assert torch.equal(a.encode(IMAGES), q.mean)
    first, again, other = (a(IMAGES, torch.Generator().manual_seed(k)).x for k in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    n = 2000
    z = ae.DiagonalGaussian(q.mean[:1].expand(n, -1, -1, -1), q.logvar[:1].expand(n, -1, -1, -1)).sample()
    ratio = z.var(0) / q.logvar[0].exp()
    assert (ratio.mean() - 1).abs() < 4 * math.sqrt(2 / n / ratio.numel())


def test_gradients_go_straight_through_the_codebook():
    """Forward comes an entry, back goes the gradient at the vector; the entry learns by its own term."""
    a, z = small(ae.VQAutoencoder, codes=16), torch.randn(3, 4, 5, 5, requires_grad=True)
    nn.init.normal_(a.codebook.weight)
    q, penalty, codes = a.quantise(z)
    assert torch.allclose(q, a.codebook(codes).movedim(-1, 1), atol=1e-6)
    g = torch.randn_like(q)
    (back,) = torch.autograd.grad((q * g).sum(), z, retain_graph=True)
    assert torch.equal(back, g)
    entries = a.codebook(codes).movedim(-1, 1).detach()
    due_z = 0.25 * 2 * (z - entries) / z[0].numel()  # the commitment has weight beta, 1/4
    (back,) = torch.autograd.grad(penalty.sum(), z, retain_graph=True)
    assert torch.allclose(back, due_z, atol=1e-6)
    (back,) = torch.autograd.grad(penalty.sum(), a.codebook.weight)
    due = torch.zeros_like(back)
    pull = (2 * (entries - z) / z[0].numel()).movedim(1, -1).flatten(0, 2)
    assert torch.allclose(back, due.index_add(0, codes.flatten(), pull.detach()), atol=1e-6)


def test_the_nearest_entry_is_the_nearest():
    a, z = small(ae.VQAutoencoder, codes=16), torch.randn(3, 4, 5, 6)
    nn.init.normal_(a.codebook.weight)
    far = torch.cdist(z.movedim(1, -1).flatten(0, 2), a.codebook.weight)
    assert torch.equal(a.nearest(z).flatten(), far.argmin(1)) and a.nearest(z).shape == (3, 5, 6)
    entries = a.codebook(a.nearest(z)).movedim(-1, 1)
    assert torch.equal(a.nearest(entries), a.nearest(z))  # quantising twice changes nothing
    assert torch.allclose(a.decode(entries), a.decode(z), atol=1e-5)


def test_codebook_use_counts():
    codes = torch.tensor([[[0, 0], [1, 1]], [[2, 2], [3, 3]]])
    assert ae.codebook_use(codes, 8) == (0.5, pytest.approx(4.0))
    assert ae.codebook_use(torch.zeros(2, 3, 3, dtype=torch.long), 8) == (0.125, pytest.approx(1.0))


def test_a_patch_of_the_discriminator_has_22_pixels():
    d, x = models.PatchDiscriminator(width=8).eval(), torch.zeros(1, 1, 64, 64, requires_grad=True)
    (seen,) = torch.autograd.grad(d(x)[0, 0, 7, 7], x)
    rows = seen[0, 0].nonzero()
    assert (rows.max(0).values - rows.min(0).values + 1).tolist() == [22, 22]


# ---- the codec -----------------------------------------------------------------------------------


@KINDS
def test_calibrated_latents_have_unit_variance(kind):
    a = small(kind)
    codec = models.calibrate(a, IMAGES)
    z = codec.encode(IMAGES)
    assert z.std() == pytest.approx(1, abs=1e-4) and z.mean() == pytest.approx(0, abs=1e-4)
    assert torch.allclose(codec.decode(z), a.decode(a.encode(IMAGES)), atol=1e-4)
    plain = models.calibrate(a, IMAGES, shift=False).encode(IMAGES)
    assert plain.std() == pytest.approx(1, abs=1e-4) and torch.allclose(plain, a.encode(IMAGES) * a.scale)
    with pytest.raises(ValueError, match="all equal"):
        models.layers.zero_(a.encoder)
        models.calibrate(a, IMAGES)


def test_batches_change_nothing():
    codec = models.calibrate(small(), IMAGES)
    one, parts = (models.Codec(codec.autoencoder, batch=k) for k in (6, 4))
    z = one.encode(IMAGES)
    assert torch.allclose(z, parts.encode(IMAGES), atol=1e-5)
    assert torch.allclose(one(z), parts(z), atol=1e-5) and not one(z).requires_grad


def test_the_shape_of_latents():
    assert models.Codec(small()).shape(5, 28) == (5, 4, 7, 7) == (5, *models.Codec(small()).encode(IMAGES).shape[1:])
    assert models.Codec(models.Identity(3)).shape(2, 8, 16) == (2, 3, 8, 16)
    with pytest.raises(ValueError, match="divide by 4"):
        models.Codec(small()).shape(5, 30)


def denoiser(codec=None, channels=1):
    torch.manual_seed(1)
    net = models.UNet(in_channels=channels, width=8, classes=10, mults=(1,), attention=(True,))  # 7 pixels are odd
    nn.init.normal_(net.last[-1].weight, std=0.05)
    return td.NetDenoiser(net, td.Cosine(), td.targets.v, codec=codec)


def test_without_a_first_stage_it_is_the_pixel_model_bit_for_bit():
    codec = models.Codec(models.Identity())
    pixel, latent = denoiser(), denoiser(codec)
    assert torch.equal(codec.encode(IMAGES), IMAGES)
    x = td.sample(pixel, (3, 1, 8, 8), n=4, seed=0)
    z = td.sample(latent, latent.codec.shape(3, 8), n=4, seed=0, decode=latent.codec)
    assert torch.equal(x, z)
    x0, eps = IMAGES[..., :8, :8], IMAGES[..., 8:16, 8:16]
    losses = [td.denoising_loss(d, x0, torch.full((6,), 0.5), eps=eps) for d in (pixel, latent)]
    assert torch.equal(*losses)


def test_latents_are_not_thresholded():
    y = torch.arange(3)
    latent = denoiser(models.calibrate(small(), IMAGES), channels=4)
    guided = td.cfg(latent, 2.0, dict(y=y), dict(y=torch.full_like(y, 10)))
    for d in (latent, td.bind(latent, y=y), guided, td.counted(guided), td.interval(guided, latent, 0.3, 3.0)):
        assert d.codec is latent.codec
        with pytest.raises(ValueError, match="latents, which have no range"):
            td.thresholded(d, td.static())
    td.thresholded(td.bind(denoiser(), y=y), td.static())  # pixels may be
    x = td.sample(guided, guided.codec.shape(3, 28), n=3, seed=0, decode=guided.codec)
    assert x.shape == (3, 1, 28, 28)


@KINDS
def test_a_latent_denoiser_is_one_file(kind, tmp_path):
    codec = models.calibrate(small(kind), IMAGES)
    d = denoiser(codec, channels=4)
    td.save_checkpoint(tmp_path / "a.safetensors", d)
    back = td.load_checkpoint(tmp_path / "a.safetensors")
    shape = d.codec.shape(2, 28)
    mine, again = (td.sample(k, shape, n=3, seed=0, decode=k.codec) for k in (d, back))
    assert torch.equal(mine, again) and back.codec.autoencoder.scale == codec.autoencoder.scale != 1
    td.checkpoints.save_network(tmp_path / "b.safetensors", codec.autoencoder)
    alone = models.Codec(td.checkpoints.load_network(tmp_path / "b.safetensors"))
    assert torch.equal(alone.encode(IMAGES), codec.encode(IMAGES))


def test_training_leaves_the_first_stage_alone():
    codec = models.calibrate(small(), IMAGES)
    before = {k: v.clone() for k, v in codec.autoencoder.state_dict().items()}
    data = dict(x0=codec.encode(IMAGES), y=torch.arange(6))
    for step in td.fit(denoiser(codec, channels=4), data, steps=2, batch_size=4):
        assert step.denoiser.codec is codec
    assert all(torch.equal(v, before[k]) for k, v in codec.autoencoder.state_dict().items())


# ---- text ----------------------------------------------------------------------------------------


def encoder(**settings):
    torch.manual_seed(2)
    return models.TextEncoder(vocabulary=30, length=6, width=16, **settings).eval()


TOKENS = torch.tensor([[3, 4, 5, 0, 0, 0], [3, 4, 5, 6, 7, 8]])


def test_padding_is_not_heard():
    e = encoder()
    vectors, mask = e(TOKENS)
    assert vectors.shape == (2, 7, 16) and mask.tolist() == [[True] * 4 + [False] * 3, [True] * 7]
    with torch.no_grad():
        e.words.weight[0] += 1.0  # what stands for padding
    assert torch.allclose(e(TOKENS)[0][mask], vectors[mask], atol=1e-6)
    words = TOKENS.clone()
    words[0, 1] = 9
    assert not torch.allclose(e(words)[0][0, 0], vectors[0, 0], atol=1e-3)  # but words are, by all


def test_the_null_caption_says_something_finite():
    vectors, mask = encoder()(torch.zeros(2, 6, dtype=torch.long))
    assert vectors.isfinite().all() and mask.sum(1).tolist() == [1, 1]


def test_the_order_of_words_matters():
    """To the start token, which without places would hear the same set of words."""
    a, b = encoder()(torch.tensor([[3, 4, 5, 0, 0, 0], [5, 4, 3, 0, 0, 0]]))[0]
    assert (a[0] - b[0]).abs().max() > 1e-4


def test_tokens_that_are_none_are_refused():
    for tokens, said in (
        (torch.zeros(2, 5, dtype=torch.long), r"\(b, 6\)"),
        (torch.full((2, 6), 30), "0 ... 29; got 30 to 30"),
    ):
        with pytest.raises(ValueError, match=said):
            encoder()(tokens)


def transformer(zero=True, channels=16, context=12):
    torch.manual_seed(3)
    keep = models.layers.zero_ if zero else lambda layer: layer
    return text.SpatialTransformer(channels, context, 4, nn.GroupNorm(8, channels, eps=1e-6), keep).eval()


def test_a_new_transformer_is_the_identity():
    x, told = torch.randn(2, 16, 5, 3), torch.randn(2, 7, 12)
    assert torch.equal(transformer()(x, told), x)
    assert not torch.allclose(transformer(zero=False)(x, told), x, atol=1e-2)


def test_cross_attention_hears_a_set():
    """Not the order of the text's vectors, nor each of them said twice, nor those that the mask leaves out."""
    t, x, told = transformer(zero=False), torch.randn(2, 16, 4, 4), torch.randn(2, 7, 12)
    out = t(x, told)
    assert torch.allclose(t(x, told[:, torch.randperm(7)]), out, atol=1e-5)
    assert torch.allclose(t(x, told.repeat(1, 2, 1)), out, atol=1e-5)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[:, 4:] = False
    assert torch.allclose(t(x, told, mask), t(x, told[:, :4]), atol=1e-5)
    assert not torch.allclose(t(x, told, mask), out, atol=1e-3)


def test_the_transformer_is_that_of_diffusers():
    from diffusers import Transformer2DModel

    theirs = Transformer2DModel(4, 4, 16, num_layers=1, cross_attention_dim=12, norm_num_groups=8).eval()
    ours = transformer(zero=False)
    block, state = theirs.transformer_blocks[0], {}
    with torch.no_grad():
        for attention, mine in ((block.attn1, ours.own), (block.attn2, ours.cross)):
            attention.to_q.weight.copy_(mine.q.weight)
            k, v = mine.kv.weight.chunk(2)
            attention.to_k.weight.copy_(k), attention.to_v.weight.copy_(v)
            attention.to_out[0].load_state_dict(mine.out.state_dict())
        pairs = [(theirs.norm, ours.norm), (theirs.proj_in, ours.first), (theirs.proj_out, ours.last)]
        pairs += [(getattr(block, f"norm{i + 1}"), ours.norms[i]) for i in range(3)]
        pairs += [(block.ff.net[0].proj, ours.mlp.first), (block.ff.net[2], ours.mlp.second)]
        for a, b in pairs:
            a.load_state_dict(state := b.state_dict())
    assert state and sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
    x, told = torch.randn(2, 16, 5, 3), torch.randn(2, 7, 12)
    mask = torch.rand(2, 7) < 0.6
    mask[:, 0] = True
    with torch.no_grad():
        gap = theirs(x, told, encoder_attention_mask=mask.long(), return_dict=False)[0] - ours(x, told, mask)
    assert gap.abs().max() < 1e-5


def unet(**settings):
    torch.manual_seed(4)
    net = models.UNet(width=8, context=16, **settings)
    for p in net.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return net.eval()


def test_a_network_hears_its_caption():
    net = models.WithText(unet(), encoder()).eval()
    x, level = torch.randn(2, 1, 8, 8), torch.tensor([100.0, 500.0])
    out = net(x, level, tokens=TOKENS)
    assert out.shape == x.shape
    other = TOKENS.clone()
    other[0, 2] = 9
    changed = (net(x, level, tokens=other) - out).abs().amax((1, 2, 3))
    assert changed[0] > 1e-4 and changed[1] < 1e-6
    null = net(x, level)
    assert torch.allclose(null, net(x, level, tokens=torch.zeros_like(TOKENS))) and (null - out).abs().max() > 1e-4


def test_text_is_neither_forgotten_nor_invented():
    """The official code falls back to self-attention without a word where no text is given."""
    x, level = torch.randn(2, 1, 8, 8), torch.zeros(2)
    with pytest.raises(ValueError, match="none was given"):
        unet()(x, level)
    with pytest.raises(ValueError, match="without context="):
        models.UNet(width=8)(x, level, text=torch.randn(2, 7, 16))


def test_captions_train_their_encoder_and_recomputing_changes_nothing():
    grads = []
    for checkpoint in (False, True):
        net = models.WithText(unet(checkpoint=checkpoint), encoder()).train()
        net(torch.ones(2, 1, 8, 8), torch.zeros(2), tokens=TOKENS).square().mean().backward()
        grads.append(net.encoder.words.weight.grad)
    assert grads[0][3:9].abs().amax(1).min() > 0 and not grads[0][9:].any()
    assert torch.allclose(*grads, atol=1e-7)


def test_a_captioned_denoiser_is_saved_and_guided(tmp_path):
    d = td.NetDenoiser(models.WithText(unet(), encoder()), td.Cosine(), td.targets.v)
    td.save_checkpoint(tmp_path / "a.safetensors", d)
    back = td.load_checkpoint(tmp_path / "a.safetensors")
    guided = [td.cfg(k, 2.0, dict(tokens=TOKENS), dict(tokens=torch.zeros_like(TOKENS))) for k in (d, back)]
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        beliefs = [g(x, 0.5).x0 for g in guided]
    assert torch.equal(*beliefs)


def test_an_image_is_a_condition_beside_x():
    torch.manual_seed(5)
    net = models.Concatenated(models.UNet(in_channels=3, out_channels=1, width=8, zero=False), "low_res").eval()
    x, level, low = torch.randn(2, 1, 8, 8), torch.zeros(2), torch.randn(2, 2, 4, 4)
    out = net(x, level, low_res=low)
    due = net.net(torch.cat([x, low.repeat_interleave(2, 2).repeat_interleave(2, 3)], 1), level)
    assert torch.equal(out, due)
    with pytest.raises(ValueError, match="needs the condition low_res="):
        net(x, level)
    with pytest.raises(ValueError, match="got \\['control'\\]"):
        net(x, level, control=low)
