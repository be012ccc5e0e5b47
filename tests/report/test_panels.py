from dataclasses import replace

import numpy as np
import pytest

from bharateo.report import html, panels, render


def test_shares_name_the_commonest_labelled_classes():
    classes = np.array([3, 3, 3, 0, 255, 255], np.uint8)
    assert panels.shares(classes) == "75 % built up, 25 % tree"
    assert panels.shares(np.full(4, 255, np.uint8)) == "no labelled pixel"


def test_error_is_judged_in_masked_valid_pixels_only(dataset, make_example):
    example = make_example(dataset)
    error = panels.absolute_error(example, example.reconstruction)
    judged = panels.hidden_pixels(example) & example.valid
    assert np.array_equal(np.isfinite(error), judged)
    expected = np.abs(example.reconstruction - example.image).mean(0)[judged].mean()
    assert np.nanmean(error) == pytest.approx(expected, rel=1e-5)
    reconstruction, copy = panels.error_panels(example, 0.1)
    assert f"mean {np.nanmean(error):.3g}" in reconstruction.alt
    assert copy.label.startswith("copy's error")


def test_invalid_pixels_change_neither_mean_colour_nor_variance(dataset, make_example):
    chips = [make_example(dataset, chip) for chip in range(dataset.num_chips)]
    example = next(chip for chip in chips if not chip.valid.all())
    std = dataset.statistics.std
    for held in (9.0, np.nan):
        image = np.where(example.valid, example.image, np.float32(held))
        other = replace(example, image=image)
        assert np.array_equal(
            panels.token_mean_rgb(example, dataset.sensor),
            panels.token_mean_rgb(other, dataset.sensor),
        )
        assert np.allclose(panels.token_variance(example, std), panels.token_variance(other, std))


def test_variance_is_that_of_each_token_averaged_over_bands(dataset, make_example):
    example = make_example(dataset)
    example = replace(example, valid=np.ones_like(example.valid))
    std = dataset.statistics.std
    patch = example.image[:, 16:32, 32:48] / std[:, None, None]
    expected = patch.reshape(len(std), -1).var(1).mean()
    assert panels.token_variance(example, std)[1, 2] == pytest.approx(expected, rel=1e-4)


def test_only_labelled_masked_patches_are_judged_and_crossed_out(dataset, make_example):
    example = make_example(dataset)
    true, predicted, _ = panels.class_panels(example)
    judged = example.hidden & (example.true_class != 255)
    right = (judged & (example.layers[0].predicted == example.true_class)).sum()
    assert predicted.label == f"predicted, {right} of {judged.sum()} right"
    crosses = next(path for style, _, path in predicted.paths if style == "cross")
    assert crosses.count("l.44") == judged.sum() - right
    assert not any(style for style, *_ in true.paths)


def test_every_panel_says_in_words_what_it_shows(dataset, make_example):
    example = make_example(dataset)
    std = dataset.statistics.std
    drawn = [
        *panels.label_panels(example, dataset.sensor),
        *panels.token_panels(example, dataset.sensor, std),
        *all_reconstruction_panels(example, dataset.sensor),
        *panels.error_panels(example, 0.1),
        *panels.class_panels(example),
    ]
    for panel in drawn:
        assert len(panel.alt) > 15
        assert panel.label


def test_a_panel_is_a_picture_with_its_words_and_lines_over_it():
    outline = panels.Outline(2, 4, 10, 21, "<test>")
    drawn = panels.Panel('"tree"', "<map>", 20, 40, "data:,x", [("lines", "", "M0 1H2")], [outline])
    page = html.article_template().environment.globals["panel"](drawn)
    assert 'viewBox="0 0 40 20" role="img" aria-label="&lt;map&gt;"' in page
    assert '<image href="data:,x" width="40" height="20"' in page
    assert '<path class="lines" d="M0 1H2"/>' in page
    assert 'class="block &lt;test&gt;" x="4" y="2" width="21" height="10"' in page
    assert 'x="14.5" y="7"' in page and ">&lt;test&gt;</text>" in page
    assert "&#34;tree&#34;" in page


def all_reconstruction_panels(example, sensor):
    return [
        panel
        for composite in sensor.composites
        for panel in panels.reconstruction_panels(example, sensor, composite)
    ]


def test_every_composite_of_a_chip_is_drawn_from_its_own_bands(dataset, make_example):
    example, sensor = make_example(dataset), dataset.sensor
    count = len(sensor.composites)
    labels = panels.label_panels(example, sensor)
    rebuilt = all_reconstruction_panels(example, sensor)
    assert len(labels) == count + 2
    assert len(rebuilt) == 4 * count
    for place, name in enumerate(sensor.composites):
        shown = render.png_uri(render.composite_rgb(example.image, sensor, example.valid, name))
        made = render.png_uri(
            render.composite_rgb(example.reconstruction, sensor, example.valid, name)
        )
        assert shown == labels[place].picture
        assert shown == rebuilt[4 * place].picture
        assert made == rebuilt[4 * place + 2].picture
    assert len({panel.alt for panel in labels + rebuilt}) == len(labels + rebuilt)


def test_a_composite_is_named_on_panels_only_where_there_are_several(dataset, make_example):
    example, sensor = make_example(dataset), dataset.sensor
    labels = [panel.label for panel in panels.label_panels(example, sensor)]
    alts = [panel.alt for panel in all_reconstruction_panels(example, sensor)]
    if len(sensor.composites) == 1:
        assert labels[0] == "image"
        assert not any(sensor.default_composite in alt for alt in alts)
    else:
        assert labels[:2] == list(sensor.composites)
        assert [alt.rpartition(" (")[2].rstrip(")") for alt in alts[::4]] == labels[:2]
