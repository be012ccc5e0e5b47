# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # BharatEO v0: learning a landscape by filling in what is hidden
#
# Cover three quarters of a map with paper. Can you guess what lies underneath? If you know how
# landscapes go together, you can: rivers carry on, fields come in blocks, towns have edges. A
# model that learns to guess well has learnt something about landscapes, and nobody had to
# explain them to it. This is **masked autoencoding**, and this notebook walks through the first
# BharatEO experiment with it, in its own order: tokens, labels, places, chips, patches,
# objectives, training, curves, reconstructions, scores, and what changes for Sentinel-2.
#
# You need to have trained nothing before. Reading takes half an hour, running a few minutes on
# two processor cores, without a graphics card. Every step is one call of the `bharateo`
# library, which you can use in the same way on your own district.
#
# The experiment is that of N. Batra, *Building a Foundational EO Model for BharatEO: A Tiny
# WorldCover V0 Notebook* (2026). What we do differently is said where we do it.

# %% [markdown]
# The one number to play with is how long to train. An **epoch** is one round in which the model
# is shown a fixed number of pictures, here 1,280. The published run took 20 such rounds (of
# 384), so we do too. Raise it when you have time for a cup of tea.

# %% tags=["parameters"]
epochs = 20

# %% [markdown]
# ## Which pixels?
#
# The experiment looks at **ESA WorldCover**, a map of the whole Earth in which every square of
# 10 m has a land-cover class. It is public, but large and on the network. Where it does not
# answer within two seconds, we take one small Sentinel-2 scene that comes with the package
# instead, and everything below goes on without a network. The next line says which of the two
# you have.

# %%
from pathlib import Path

import bharateo

config, why = bharateo.choose_pixels("v0")
print(why)

# %% [markdown]
# A **configuration** holds every choice of an experiment. We set a few: three bands, as a
# screen has, the published chips and objective, and a training short enough to wait for.

# %%
config = bharateo.with_settings(
    config,
    {
        "data.bands": ["rgb"],  # of the packaged scene; WorldCover's colours are three anyway
        "model.chip_px": 128,
        "model.mask_ratio": 0.75,
        "heads.pixels.weight": 1.0,
        "heads.pixels.options.beta": 0.1,
        # The preset asks which of the classes' colours a pixel has; the published model did not.
        "heads.pixels.options.target": (
            "pixels" if config.data.source == "worldcover" else "correction"
        ),
        "heads.landcover.weight": 0.2,
        "heads.landcover.options.encoder": 0.0,  # classes are asked of the decoder alone
        "training.epochs": epochs,
        "training.chips_per_epoch": 1280,
        "training.batch_size": 64,
        "training.warmup_epochs": 0.5,
    },
)
folder = Path("../runs/notebook-bharateo_v0") / config.data.source

# %% [markdown]
# ## 1. Tokens, and how many there are
#
# A model of this kind (a *transformer*, the kind that also writes text) does not take a picture
# whole. It takes a list of short pieces, its **tokens**. Text is cut into word parts; we cut a
# picture:
#
# - A **chip** is one picture of 128 × 128 pixels, somewhat over a kilometre across.
# - A **patch** is a square of 16 × 16 pixels of it. A chip has 8 × 8 = 64.
# - A **token** is a patch as the model takes it: one list of 3 × 16 × 16 = 768 numbers.
# - Three quarters of the tokens, **48 of 64, are hidden** (*masked*). The model sees the other
#   16.
#
# Before training anything, count. This is the account of the published run: 384 chips, 20
# epochs.

# %%
bharateo.show_account(bharateo.Accounting(384, 20, 128, 16, num_bands=3, mask_ratio=0.75))

# %% [markdown]
# **Question 1.** The last two rows differ by a factor of three. Which of them is the size of
# the problem?
#
# <details><summary>Answer</summary>
#
# Both are true, of different things. There are 94,371,840 masked *pixels*, places on the
# ground; in each the model has to name three *scalars*, one a band, 283,115,520 in all. People
# compare runs by such numbers, so a number without its unit is worth little: with ten bands the
# same ground would make ten scalars a pixel, and nobody would have seen more of the Earth.
#
# </details>
#
# **Question 2.** Why hide three quarters, and not a tenth?
#
# <details><summary>Answer</summary>
#
# With a tenth hidden, every gap is surrounded by its answer, and smearing the neighbours across
# it is nearly perfect: nothing has to be understood. With three quarters hidden, one patch in
# three has no visible one at any of its four sides. It is also about four times cheaper, since
# only visible tokens go through the encoder.
#
# </details>

# %% [markdown]
# ## 2. Labels
#
# WorldCover knows eleven classes, some of them rare in northern India. The experiment gathers
# them into eight. A pixel without data (code 0) belongs to none of them.

# %%
for code, (name, class_id) in bharateo.WORLDCOVER.native.items():
    print(f"{code:3}  {name:25} -> {class_id} {bharateo.BHARATEO_CLASSES[class_id].name}")

# %% [markdown]
# Such labels are called **weak**: a computer made them too, and it was wrong now and then. They
# cost nothing and cover the Earth, which is why one pretrains on them, and they are no truth,
# which is why one should not believe a score on them to the last digit. (If you have the
# packaged scene, your labels are land-use polygons that volunteers drew for OpenStreetMap,
# gathered into the same eight classes; two thirds of the scene have none.)
#
# **Question 3.** The published experiment put code 0, *no data*, into the class "rare, other".
# What is wrong with that?
#
# <details><summary>Answer</summary>
#
# The edge of a file is no land cover. The model would be taught to predict where files end, and
# be praised for it. Here pixels without a label have no class: they are never a target, and no
# score counts them.
#
# </details>

# %% [markdown]
# ## 3. Places
#
# A **region of interest** is a square of ground to take pictures from; the experiment has three
# around Delhi: the city, the dry Shekhawati, and the fields of the Mathura belt. `build` reads
# the pixels and labels, and cuts the ground into blocks. Each block is for one purpose:
#
# - **train**: the model learns from it;
# - **val** (validation): looked at during training, to see how it goes;
# - **test**: looked at once, at the end.

# %%
dataset = bharateo.build(config, folder / "dataset")

# %%
bharateo.show_regions(dataset)

# %% [markdown]
# **Question 4.** Why not choose test *chips* at random? That is simpler.
#
# <details><summary>Answer</summary>
#
# Because neighbours look alike, and random chips overlap. A test chip that shares half its
# pixels with a training chip can be answered from memory. The published experiment scored
# itself on its own training chips. Whole blocks with a strip between them make sure that the
# model has never seen the ground it is asked about.
#
# </details>

# %% [markdown]
# ## 4. Chips
#
# Four chips, with the land cover of every pixel and, at the right, of every patch. A patch gets
# the class that most of its labelled pixels have; where two are equally frequent, the one with
# the lower number. Hatched is what has no label.

# %%
bharateo.show_chips(dataset, config)

# %% [markdown]
# ## 5. Patches, and the mask
#
# How the model meets a chip: cut up, each patch one token. The second picture shows what is
# left if you keep of each token its mean colour alone; the third, how much varies inside it.
# Where it is black, the mean says everything. The last is what the model is given.

# %%
bharateo.show_tokens(dataset, config)

# %% [markdown]
# The same in numbers. A *batch* is a stack of chips, `patchify` cuts it, `unpatchify` puts it
# together again, and nothing is lost on the way:

# %%
windows, batch, mask = next(bharateo.fixed_batches(dataset, "test", config.model, batch_size=4))
patches = bharateo.patchify(batch.image, patch_px=16)
again = bharateo.unpatchify(patches, patch_px=16, num_cols=8)
print("chips, bands, rows, columns:", tuple(batch.image.shape))
print("chips, tokens, numbers in each:", tuple(patches.shape))
print("visible:", mask.num_visible, " hidden:", mask.masked.shape[1])
print("put together again, all the same:", bool((again == batch.image).all()))

# %% [markdown]
# ## 6. What is asked: two objectives
#
# Training needs one number that says how wrong the model is, the **loss**. Training means: show
# pictures, compute the loss, turn each of the model's million and more weights a little in the
# direction that lowers it, and again. There are two parts.
#
# **Pixels.** For every hidden patch, compare the guess with the truth. *SmoothL1* is the square
# of a small error and the plain size of a large one, so that a few impossible pixels do not
# drown out the rest. Below `beta` = 0.1 it is a square:

# %%
beta = 0.1
for error in (0.01, 0.05, 0.1, 0.2, 0.5):
    loss = error**2 / (2 * beta) if error < beta else error - beta / 2
    print(f"off by {error:4}: loss {loss:.4f}")

# %% [markdown]
# **Classes.** For every patch the model also names probabilities of the eight classes.
# *Cross-entropy* is the logarithm of how much the right class was doubted. It counts a fifth:
#
# loss = SmoothL1 on hidden patches + 0.2 × cross-entropy of the patches' classes
#
# **Question 5.** What is the cross-entropy of a model that has no idea and gives each of the
# eight classes one eighth?
#
# <details><summary>Answer</summary>
#
# The natural logarithm of 8, 2.08; times 0.2 that is 0.42. A model begins near there. It gets
# better fast at first, since to know which class is the commonest is already worth a lot; the
# first point of the curve below is the mean over a whole epoch of that.
#
# </details>

# %% [markdown]
# ## 7. Training
#
# Sixty-four chips at a time, 20 times an epoch. No two are the same: every chip is cut afresh
# from the stored ground, flipped or turned, and covered by a new random mask. Interrupt it
# whenever you like; the same cell goes on where it stopped.

# %%
run = bharateo.pretrain(config, dataset, folder / f"run-{epochs}-epochs")

# %% [markdown]
# What we do differently from the published model: ours has an **encoder**, which sees the 16
# visible tokens alone, and a small **decoder**, which fills in the rest and is thrown away in
# the end. The first model ran all 64 tokens, 48 of them blank, through its encoder. The encoder
# is what is worth keeping: the part that turns a patch into a short list of numbers which say
# what kind of place it is.

# %% [markdown]
# ## 8. Curves
#
# The loss should fall, and on validation ground too. Where training goes on falling and
# validation does not, the model has begun to learn its own chips by heart. The dotted lines are
# the subject of section 10, which needs the scores that `evaluate` makes.

# %%
scores = bharateo.evaluate(run)

# %%
bharateo.show_curves(run)

# %% [markdown]
# **Question 6.** Accuracy on *visible* patches is as a rule higher than on *masked* ones. Which
# tells you more?
#
# <details><summary>Answer</summary>
#
# The masked one. The class of a visible patch can be read off; with WorldCover's palette it is
# simply the patch's colour. The published 0.90 was over all tokens: if the visible quarter is
# right every time, 0.90 = 0.25 × 1 + 0.75 × *x*, and *x*, the part that had to be guessed, is
# 0.87. On the model's own training chips.
#
# </details>

# %% [markdown]
# ## 9. Reconstructions
#
# Test ground, never seen in training. Beside what the model makes of it: a copy of the nearest
# visible patch into every gap, a rule that a child could follow.

# %%
bharateo.show_reconstructions(run, dataset)

# %% [markdown]
# **Question 7.** Why are the reconstructions blurred, while the copies are crisp?
#
# <details><summary>Answer</summary>
#
# A model that is unsure whether a road turns left or right does best, on average, by painting a
# bit of both: the loss punishes distance, not blur. The copy is crisp and often crisply wrong.
# A blurred picture can be the better answer; a beautiful one proves nothing.
#
# </details>

# %% [markdown]
# ## 10. Is it any good?
#
# A score means something beside another. Here are four rules which have learnt nothing:
#
# - **majority class**: always the commonest class of the training ground, and its mean colour;
# - **mean colour**: the mean of the chip's visible patches, and their commonest class;
# - **nearest-visible copy**: section 9's;
# - **bilinear fill**: visible patches, smeared across the gaps.
#
# Dots are scores on test ground, bars the 95 % **interval**: how far the score could be off by
# the luck of which ground was held out. Whole blocks are drawn anew two thousand times, since the
# patches of one block resemble each other and are not as much evidence as they are many. Fewer than
# five test blocks are too few to say how far: there are dots alone.

# %%
bharateo.show_scores(run)

# %%
bharateo.show_patch_classes(run, dataset)

# %%
bharateo.show_confusion(run)

# %% [markdown]
# **Question 8.** Look at your own chart: does the model beat the copy?
#
# <details><summary>Answer</summary>
#
# On the packaged scene its pixels do, and its classes do not: sixteen squares of ground are far too
# little to learn landscapes from, and with eight test blocks the bars are wide. On WorldCover, with
# the longer training of `configs/v0.yaml`, which asks for whole colours, both do: around
# Delhi it makes seven tenths of the copy's error and names over six patches in a hundred more; the
# figures and their command are at the head of that file.
#
# The published model did not beat the copy on ground that it had not seen: it named 0.73 of the
# masked patches, the copy 0.75. Nobody had asked; that is what baselines are for.
#
# </details>
#
# **Question 9.** Your neighbour's model reaches 90 %. What do you ask?
#
# <details><summary>Answer</summary>
#
# On which ground? Of masked patches alone? Where the commonest class makes how many per cent?
# And: what did copying next door reach?
#
# </details>

# %% [markdown]
# ## 11. What changes for Sentinel-2
#
# WorldCover's colours are a drawing: eight flat colours, and whoever sees a colour knows the
# class. The satellite itself sees ten useful bands, some of them invisible to us, and the class
# is to be worked out. The method stays:
#
# | | v0 | Sentinel-2 |
# |---|---|---|
# | bands | 3 | 10 |
# | numbers in a token | 768 | 2,560 |
# | a value is | a colour from 0 to 1 | reflectance: the share of sunlight that comes back |
# | before the model | nothing | each band minus its mean, divided by its deviation |
# | missing pixels | none | cloud, shadow, edges: no target, no statistic |
# | labels | the picture itself | a second map, laid over it |
#
# And the plan gets larger. The account of a million chips, a hundred times:

# %%
bharateo.show_account(bharateo.Accounting(1_000_000, 100, 128, 16, num_bands=10, mask_ratio=0.75))

# %% [markdown]
# **Question 10.** How many times more ground is that than in the published run: by scalars, and
# by pixels?
#
# <details><summary>Answer</summary>
#
# By masked scalars 12,288,000,000,000 / 283,115,520 = 43,403 times. By masked pixels 13,021
# times. The other factor, 10 / 3, is bands, not ground.
#
# </details>
#
# ## Where to go
#
# The next notebook, `sentinel2_v0`, does it on ten bands, and then uses what was learnt: to
# search for places alike, and to make a map. For your own district, in a terminal (any place on
# Earth, as longitude, latitude):
#
# ```
# bharateo demo --roi pune=73.86,18.52 --output runs/pune
# ```
