"""What runs in the peers' environment; it needs nothing of emaseg.

python worker.py versions
python worker.py serve CONFIG.json       passes of a network, one for each line on stdin
python worker.py predict CONFIG.json     MMSegInferencer on a folder, masks written
python worker.py test CONFIG.json        mmsegmentation's test loop, with or without its test-time augmentation
"""

from __future__ import annotations

import json
import os
import sys
import time
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any


class _NoOperators(types.ModuleType):
    """In the place of mmcv's compiled operators, of which EMANet uses none."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


def mmseg_config(options: dict[str, Any]) -> Any:
    """mmsegmentation's own configuration of the row, with the settings that both systems are run with."""
    sys.modules["mmcv._ext"] = _NoOperators("mmcv._ext")
    sys.modules["mmcv._ext"].__spec__ = ModuleSpec("mmcv._ext", None)  # it is looked for by name, too
    import mmcv

    version, mmcv.__version__ = mmcv.__version__, "2.1.0"  # the newest that mmsegmentation 1.2.2 accepts
    import mmseg

    mmcv.__version__ = version
    from mmengine.config import Config
    from mmseg.utils import register_all_modules

    register_all_modules()
    folder = Path(mmseg.__file__).parent / ".mim" / "configs" / "emanet"
    config = Config.fromfile(folder / f"{options['config']}.py")
    config.model.pretrained = None
    config.norm_cfg = {"type": "BN", "requires_grad": True}
    _plain_norms(config.model)
    config.load_from = options["weights"]
    if options.get("scale"):
        for step in config.test_pipeline:
            if step.type == "Resize":
                step.scale = tuple(options["scale"])
        config.test_dataloader.dataset.pipeline = (
            config.test_pipeline
        )  # a copy of its own, which the inferencer follows
    return config


def _plain_norms(node: Any) -> None:
    """A synchronised norm needs several processes."""
    if isinstance(node, dict):
        for value in node.values():
            _plain_norms(value)
        if node.get("type") == "SyncBN":
            node["type"] = "BN"
    elif isinstance(node, list):
        for value in node:
            _plain_norms(value)


def mmseg_model(options: dict[str, Any]) -> Any:
    config = mmseg_config(options)
    from mmengine.runner import load_checkpoint
    from mmseg.registry import MODELS

    model = MODELS.build(config.model)
    load_checkpoint(model, options["weights"], map_location="cpu")
    return model.eval()


def serve(options: dict[str, Any]) -> None:
    """Answer each line on stdin, the name of a way, with the seconds of one pass; first build all ways."""
    import numpy as np
    import torch

    torch.set_num_threads(options["threads"])
    height, width = options["shape"]
    image = np.random.default_rng(0).standard_normal((1, 3, height, width)).astype(np.float32)
    ways = _ways(options, image)
    logits = {name: way() for name, way in ways.items()}  # and once to warm up
    folder = Path(options["logits"])
    for name, value in logits.items():
        np.save(folder / f"{name}.npy", np.asarray(value, np.float32))
    print(json.dumps({"ways": list(ways)}), flush=True)
    for line in sys.stdin:
        began, used = time.perf_counter(), time.process_time()
        ways[line.strip()]()
        print(json.dumps({"wall": time.perf_counter() - began, "cpu": time.process_time() - used}), flush=True)


def _ways(options: dict[str, Any], image: Any) -> dict[str, Any]:
    import numpy as np
    import torch

    size = tuple(options["shape"])
    ways: dict[str, Any] = {}
    if "mmseg" in options["ways"]:
        model = mmseg_model(options)
        x, meta = torch.from_numpy(image), [{"img_shape": size, "ori_shape": size, "pad_shape": size}]

        @torch.inference_mode()
        def eager() -> Any:
            return model.encode_decode(x, meta).numpy()  # with the resize to the input's size

        ways["mmseg"] = eager

    def resized(low: Any) -> Any:
        with torch.inference_mode():
            return torch.nn.functional.interpolate(torch.from_numpy(low), size=size, mode="bilinear").numpy()

    if "onnxruntime" in options["ways"]:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options["threads"]
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(options["onnx"], settings, providers=["CPUExecutionProvider"])
        entry = session.get_inputs()[0].name
        ways["onnxruntime"] = lambda: resized(session.run(None, {entry: image})[0])
    for name, hint in (("openvino", "f32"), ("openvino bf16", "bf16")):
        if name in options["ways"]:
            import openvino

            core = openvino.Core()
            compiled = core.compile_model(
                options["onnx"],
                "CPU",
                {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": options["threads"], "NUM_STREAMS": 1},
            )
            ways[name] = lambda compiled=compiled: resized(np.asarray(compiled(image)[0]))
    return ways


def predict(options: dict[str, Any]) -> None:
    import torch

    torch.set_num_threads(options["threads"])
    config = mmseg_config(options)
    from mmseg.apis import MMSegInferencer

    inferencer = MMSegInferencer(config, options["weights"], device="cpu")
    inferencer(options["images"], out_dir=options["out"], img_out_dir="", pred_out_dir="pred")


def test(options: dict[str, Any]) -> None:
    import torch

    torch.set_num_threads(options["threads"])
    config = mmseg_config(options)
    from mmengine.runner import Runner

    dataset = config.test_dataloader.dataset
    dataset.type, dataset.data_root = "BaseSegDataset", options["data"]
    dataset.data_prefix = {"img_path": "images", "seg_map_path": "labels"}
    dataset.img_suffix, dataset.seg_map_suffix = ".png", ".png"
    dataset.metainfo = {"classes": options["classes"], "palette": [[i, i, i] for i in range(len(options["classes"]))]}
    dataset.pipeline = config.tta_pipeline if options["tta"] else config.test_pipeline
    config.test_dataloader.num_workers = 2
    config.val_dataloader = config.val_cfg = config.val_evaluator = None
    config.train_dataloader = config.train_cfg = config.optim_wrapper = config.param_scheduler = None
    if options["tta"]:
        config.model = {"type": "SegTTAModel", "module": config.model, "data_preprocessor": None}
    config.work_dir, config.launcher = options["out"], "none"
    Runner.from_cfg(config).test()


def versions() -> None:
    from importlib.metadata import version

    names = ("torch", "mmsegmentation", "mmengine", "mmcv-lite", "onnxruntime", "openvino", "opencv-python-headless")
    print(json.dumps({name: version(name) for name in names}))


if __name__ == "__main__":
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    if sys.argv[1] == "versions":
        versions()
    else:
        verbs = {"serve": serve, "predict": predict, "test": test}
        verbs[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()))
