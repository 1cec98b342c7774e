"""``comit overlay --explain gradcam``: the Grad-CAM of the evaluation, of the picture of a row."""

from __future__ import annotations

from dataclasses import asdict

import cv2
import numpy as np
import pytest
import resultfiles as rf
from click.testing import CliRunner

from comit.card import open_model
from comit.cli import main
from comit.errors import ModelError, UsageError
from comit.image import open_image
from comit.image.preprocess import picture, preprocess
from comit.look.picture import Masks, draw

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file

from comit.look.explain import GradCam  # noqa: E402
from comit.model.gradcam import gradcam  # noqa: E402
from comit.model.runs import WEIGHTS, write_description  # noqa: E402
from comit.model.stored import load_network  # noqa: E402


@pytest.mark.parametrize("task", ["unhealthy", "covid"])
def test_the_heat_in_an_overlay_is_the_grad_cam_of_its_picture(tmp_path, tiny_model, task):
    rf.draw(tmp_path / "a.png")
    results = rf.write(tmp_path / "r.parquet", [rf.ok("a")])
    words = ["overlay", results, "--images", tmp_path, "--out", tmp_path / "out"]
    words += ["--explain", "gradcam", "--task", task, "--model", tiny_model]
    done = CliRunner().invoke(main, [str(w) for w in words])
    assert done.exit_code == 0, done.output
    (written,) = (tmp_path / "out").iterdir()

    image = open_image((tmp_path / "a.png").read_bytes())
    pixels = preprocess(image.samples(), image.presentation).pixels
    network = load_network(open_model(tiny_model)[1])
    (heat,) = gradcam(network, torch.from_numpy(pixels)[None, None], task)
    assert heat.max() == 1
    grey = picture(image.samples(), image.presentation)
    expected = draw(grey, Masks(rf.LUNGS, rf.DISEASE), heat=heat)
    found = cv2.cvtColor(cv2.imread(str(written)), cv2.COLOR_BGR2RGB)
    assert np.array_equal(found, expected)


def test_a_training_run_is_explained_as_the_model_exported_from_it(tmp_path, tiny_model):
    network = load_network(open_model(tiny_model)[1])
    run = tmp_path / "run"
    run.mkdir()
    save_file(network.state_dict(), run / WEIGHTS)
    write_description(run, {"network": asdict(network.config)})
    rf.draw(tmp_path / "a.png")
    image = open_image((tmp_path / "a.png").read_bytes())
    pixels = preprocess(image.samples(), image.presentation).pixels
    heat = GradCam(run, "covid")(pixels)
    assert heat.shape == (224, 224) and heat.max() == 1
    assert np.array_equal(heat, GradCam(tiny_model, "covid")(pixels))


def test_what_is_no_network_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"run\.json|training run"):
        GradCam(tmp_path, "covid")
    with pytest.raises(ModelError):
        GradCam(tmp_path / "no.onnx", "covid")
