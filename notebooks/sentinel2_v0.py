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
# # BharatEO on Sentinel-2: ten bands, and what the features are good for
#
# The first notebook, `bharateo_v0`, taught a model to fill in hidden patches of a picture in
# three colours. Here the picture is what the satellite measures: **ten bands** of light, most
# of them invisible to us. And we go on where the first notebook ended: the decoder is thrown
# away, the encoder is kept, and we ask what its numbers are good for. Three things: naming land
# cover from a few labels (**probes**), finding places that look like this one (**search**), and
# drawing a **map** that says where it is unsure.
#
# It needs no network: the pixels come with the package. They are one small Sentinel-2 scene
# near Brandenburg, Germany, in February 2017, with land use from OpenStreetMap. Running takes a
# few minutes on two processor cores.
#
# Expect no wonders from it. Seventy square kilometres of training ground, a third of it
# labelled, is a thimble; what you see here is every step on real pixels, and an honest account
# of each. The same calls work on ground a thousand times larger.

# %% tags=["parameters"]
epochs = 20

# %%
from pathlib import Path

import bharateo

config = bharateo.load_config(
    "sample",
    {
        "training.epochs": epochs,
        "training.warmup_epochs": 0.5,
    },
)
folder = Path("../runs/notebook-sentinel2_v0")

# %% [markdown]
# ## 1. Ten bands
#
# A **band** is one colour of light, a photograph through one filter. Sentinel-2 takes some at
# 10 m a pixel and some at 20 m; `build` brings all to 10 m. What a pixel holds is
# **reflectance**: the share of sunlight that comes back, 0 for none, 1 for all of it.

# %%
dataset = bharateo.build(config, folder / "dataset")

# %%
mean, deviation = dataset.statistics.mean, dataset.statistics.std
for number, band in enumerate(dataset.sensor.bands):
    print(
        f"{band.name:4} {band.wavelength_nm:6.0f} nm  {band.resolution_m:3.0f} m   "
        f"reflectance {mean[number]:.3f} ± {deviation[number]:.3f}"
    )

# %% [markdown]
# The bands beyond red (B05 and up) vary far more than blue. If the model were fed raw numbers,
# it would listen to the loudest. So each band is **standardised** inside the model: minus its
# mean over the training ground, divided by its deviation. The two numbers belong to the weights
# and travel with them.
#
# **Question 1.** A file stores 1,500 for a pixel. Is that a reflectance of 0.15?
#
# <details><summary>Answer</summary>
#
# It depends on when the file was made. Since 2022 ESA stores reflectance × 10,000 **+ 1,000**,
# and 1,500 means 0.05. Older files, and some catalogues' copies of newer ones, come without the
# 1,000. Mixing the two has spoilt many an experiment, silently. Here one function decides, file
# by file, keeps its evidence beside every chip, and looks at the darkest pixels to see whether
# it can be true.
#
# </details>

# %% [markdown]
# ## 2. The ground
#
# In *true colour* the bands red, green and blue are shown as such. In *false colour* near
# infrared is shown as red: leaves reflect it strongly, so what grows glows. A third of the
# scene has a label; hatched is the rest.

# %%
bharateo.show_regions(dataset)

# %% [markdown]
# **Question 2.** Hatched veils lie over the middle: cloud, which is left out. What would it do to
# the test if it were not?
#
# <details><summary>Answer</summary>
#
# It would make it hard, or easy, in a way that has nothing to do with land cover: cloud is smooth,
# and some test blocks would be hazier than all that was trained on. Among eight test blocks one
# or two bad ones weigh much. The pipeline for Sentinel-2 leaves clouded pixels out by the
# product's own cloud mask; this old sample has none, and we drew ours from its coastal band.
#
# </details>

# %% [markdown]
# ## 3. Chips and tokens
#
# A token is now 10 × 16 × 16 = 2,560 numbers. The scene is small, and so are its chips: 112
# pixels across, 7 × 7 = 49 tokens, 24 of them hidden.

# %%
bharateo.show_chips(dataset, config)

# %%
bharateo.show_tokens(dataset, config)

# %% [markdown]
# ## 4. Training
#
# The objectives of the first notebook: rebuild the hidden pixels (all ten bands of them) and
# name the class of every patch. The classes of visible patches are asked of the encoder as well,
# since it is the part that is kept. Where a patch has no label, only its pixels are asked for.

# %%
run = bharateo.pretrain(config, dataset, folder / f"run-{epochs}-epochs")

# %%
scores = bharateo.evaluate(run)

# %%
bharateo.show_curves(run)

# %% [markdown]
# **Question 3.** Training loss falls, validation loss hardly does. What has happened, and what
# would help?
#
# <details><summary>Answer</summary>
#
# There are sixteen training blocks, and the model has seen them again and again. It learns
# *these* fields by heart. More epochs do not help, and a larger model has only more room to
# memorise. More ground helps: that is why the plan speaks of a million chips.
#
# </details>

# %% [markdown]
# ## 5. What it fills in
#
# The same two composites, and at the right the error over all ten bands. Judge it beside the
# copy.

# %%
bharateo.show_reconstructions(run, dataset, count=2)

# %%
bharateo.show_scores(run)

# %% [markdown]
# The copy of the next patch is beaten on pixels, by about a quarter. A smooth fill from what is
# visible, which has learnt nothing, does as well: the model starts from it, and one winter day over
# sixteen blocks teaches it little more. Classes the copy names far better. That is what baselines
# are for: without them, the pictures above might have looked like success.
#
# ## 6. Probes: what are the features worth?
#
# Now throw the decoder away. The **encoder** turns each patch into 128 numbers, its
# **feature**. Nothing is hidden any more, and the encoder learns no further: it is *frozen*. A
# **probe** is a small classifier that is shown 5 or 20 labelled patches of every class, as
# features, and has to name the classes of test patches.
#
# Beside it, the same probe on features for which nobody trained anything: *band statistics*
# (the mean, spread and quantiles of the patch's bands) and *the same encoder, untrained*. If
# the trained one is not better than these, pretraining has bought nothing.

# %% tags=["hide-output"]
probes = bharateo.probe(
    run,
    levels=["patch"],
    budgets=[5, 20],
    features=["encoder", "random_encoder", "band_statistics"],
)

# %%
bharateo.show_probes(probes)

# %% [markdown]
# **Macro-F1** is the mean over classes of how well each is found (no misses) and kept clean (no
# false alarms), so a rare class counts as much as a common one. When this was written the
# trained encoder stood a little above its untrained self and about level with band statistics,
# and neither difference was certain: a thimble of ground buys little. With more ground the
# distance should grow, and this chart is how to find out.
#
# **Question 4.** Why compare with an *untrained* encoder? It knows nothing.
#
# <details><summary>Answer</summary>
#
# It knows nothing, and its features still say much: random mixtures of a patch's pixels keep
# most of what was in them, as a crumpled map keeps its roads. A good score may come from the
# pixels alone. What counts is the distance between the trained and the untrained.
#
# </details>
#
# **Question 5.** One line lies above the other. May I say which is better?
#
# <details><summary>Answer</summary>
#
# Not from the bars: both features are tested on the same eight blocks of ground, and when those
# are hard, they are hard for both, so overlapping bars settle nothing. What counts is the interval
# of the *difference*, on the same blocks and the same draws of labels, and
# `bharateo probe` prints it.
#
# </details>

# %% [markdown]
# ## 7. Embed: a feature for every place
#
# For maps and search we want features of a whole raster, not of chips. `write_sample` writes
# the scene as a GeoTIFF, which is how your own district would come; from here on everything
# works with any raster that has these ten bands. `embed` slides windows over it, overlapping by
# half, and blends what they say, so that no seams appear. What comes out is a GeoTIFF too: a
# pixel for each patch, a band for each of the 128 numbers.

# %%
scene, labels = bharateo.write_sample(folder / "raster")
products = folder / f"products-{epochs}-epochs"
vectors, *_ = bharateo.embed(run, scene, products / "vectors.tif")

# %% [markdown]
# ## 8. Search: more places like this one
#
# Point at a place, and ask which other patches have the most similar feature, by the angle
# between the two lists of numbers. The red frame is in a lake, at 12.680° east, 52.519° north.

# %%
found = bharateo.search(vectors, [(12.6796, 52.5192)], products / "lake", count=13)
found[["rank", "similarity", "lon", "lat"]].head()

# %%
bharateo.show_picture(products / "lake" / "sheet.png", "The lake, and the places most like it")

# %% [markdown]
# And the same for a forest:

# %%
found = bharateo.search(vectors, [(12.5793, 52.4999)], products / "forest", count=13)

# %%
bharateo.show_picture(products / "forest" / "sheet.png", "The forest, and the places most like it")

# %% [markdown]
# **Question 6.** Nobody told the search what a lake is. Where does it know from?
#
# <details><summary>Answer</summary>
#
# It does not. It knows that these patches are alike in the numbers that turned out useful for
# filling in gaps. Water is dark in the infrared, smooth, and goes on into the next patch, so it
# gets numbers of its own. Whether *alike* means what you mean by it, you see on the sheet, and
# `bharateo score-search` measures it on test ground.
#
# </details>

# %% [markdown]
# ## 9. A map, and how far to trust it
#
# The land-cover head names a class for every patch of the raster. A map alone would look sure
# of itself everywhere; so beside it come
#
# - **uncertainty**: dark where one class is clearly ahead, bright where it is a guess;
# - **out of the run's domain**: ground unlike all that the model was trained on, where it
#   should not be believed;
# - **suspect labels**: patches whose label the map finds hard to believe. A person should look
#   at these first.

# %%
record = bharateo.map_raster(run, scene, products / "map.tif", against=str(labels))

# %%
bharateo.show_map(products / "map.tif")

# %% [markdown]
# Where cloud was, there is no map. The suspect labels
# are a mixture: some are mistakes of the map, and some are land that was a meadow to one
# volunteer and a field to another. With `map.tif` lie a style for QGIS and `map.json`, with
# areas and provenance.
#
# **Question 7.** Agreement with the labels is printed above. Is it the map's accuracy?
#
# <details><summary>Answer</summary>
#
# No. Most of these labels were in the training. What to expect of ground that was held out,
# sections 5 and 6 say; agreement here is good for one thing, finding labels to look at.
#
# </details>

# %% [markdown]
# ## Where to go
#
# Your own district, from the public archive, with WorldCover as the labels; a terminal and a
# network are enough:
#
# ```
# bharateo build configs/sentinel2-10band.yaml --roi pune=73.86,18.52 --output datasets/pune
# bharateo pretrain configs/sentinel2-10band.yaml --dataset datasets/pune --output runs/pune
# bharateo map runs/pune district.tif --output map.tif --against worldcover
# ```
#
# And with twenty points of your own classes, `bharateo teach runs/pune district.tif --points
# my_points.gpkg --output my-map` draws your own map, says how good it will be on other ground,
# and names the places to label next.
