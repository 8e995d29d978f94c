"""One scene as each annotation tool would export it, small images included, and running the conversion."""

from __future__ import annotations

import base64
import io
import itertools
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from emaseg.convert import Conversion, Options, convert
from emaseg.data.sets.masks import paint

SIZE = (24, 32)  # height, width
Polygon = list[float]
Objects = list[tuple[str, Polygon]]
Scene = dict[str, Objects]  # by image name

TRIANGLE: Polygon = [3, 2, 20, 2, 20, 20]
SQUARE: Polygon = [15, 5, 28, 5, 28, 18, 15, 18]
SCENE: Scene = {
    "a.jpg": [("cat", TRIANGLE), ("road sign", SQUARE)],
    "b.jpg": [("road sign", SQUARE), ("cat", TRIANGLE)],
    "c.jpg": [("cat", TRIANGLE)],
}
CLASSES = ("cat", "road sign")


def photo(path: Path, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name) + sum(map(ord, path.name)))
    Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(path)
    return path


def mask_of(polygon: Polygon, size: tuple[int, int] = SIZE) -> np.ndarray:
    label = np.zeros(size, np.uint8)
    paint(label, [polygon], 1)
    return label


def expected(objects: Objects, classes: Sequence[str] = CLASSES) -> np.ndarray:
    """The label map with later objects on top; classes count from 1."""
    label = np.zeros(SIZE, np.uint8)
    for name, polygon in objects:
        paint(label, [polygon], 1 + list(classes).index(name))
    return label


def run(folder: Path, out: Path, **options: Any) -> Conversion:
    events = convert(folder, out, Options(**options))
    while True:
        try:
            next(events)
        except StopIteration as end:
            return end.value


def masks(out: Path) -> dict[str, np.ndarray]:
    """The masks of a conversion by their relative stems."""
    found = sorted((out / "masks").rglob("*.png"))
    return {str(path.relative_to(out / "masks").with_suffix("")): np.asarray(Image.open(path)) for path in found}


def names(out: Path) -> list[str]:
    """Class names by mask value, as the file of names has them."""
    return [line.partition(": ")[2] for line in (out / "classes.txt").read_text().splitlines()]


def box(left: float, top: float, right: float, bottom: float) -> Polygon:
    return [left, top, right, top, right, bottom, left, bottom]


def rectangle_at(place: int) -> Polygon:
    """Small rectangles beside each other."""
    x, y = 2 + 6 * (place % 5), 3 + 8 * (place // 5)
    return box(x, y, x + 4, y + 5)


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def pairs(polygon: Polygon) -> list[list[float]]:
    return [[x, y] for x, y in zip(polygon[::2], polygon[1::2], strict=True)]


def png(mask: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, "PNG")
    return file.getvalue()


# -------------------------------------------------------------------------------------------------------- exporters
def labelme(root: Path, scene: Scene) -> None:
    for image, objects in scene.items():
        photo(root / image)
        shapes = [{"label": name, "points": pairs(polygon), "shape_type": "polygon"} for name, polygon in objects]
        about = {"version": "5.0", "imagePath": image, "imageData": None, "imageHeight": SIZE[0], "imageWidth": SIZE[1]}
        write((root / image).with_suffix(".json"), {**about, "shapes": shapes})


def labelme_masks(root: Path, scene: Scene) -> None:
    for image, objects in scene.items():
        photo(root / image)
        shapes = []
        for name, polygon in objects:
            window = mask_of(polygon)[2:22, 3:30]
            content = base64.b64encode(png(window)).decode()
            shapes.append({"label": name, "points": [[3, 2], [29, 21]], "shape_type": "mask", "mask": content})
        about = {"imagePath": f"..\\{root.name}\\{image}", "imageHeight": SIZE[0], "imageWidth": SIZE[1]}
        write((root / image).with_suffix(".json"), {**about, "shapes": shapes})


def coco(
    root: Path,
    scene: Scene,
    segmentation: Callable[[Polygon], Any] = lambda polygon: [polygon],
    file: str = "coco.json",
) -> None:
    images, notes = [], []
    for place, (image, objects) in enumerate(scene.items()):
        photo(root / "images" / image)
        images.append({"id": 100 + place, "file_name": image, "height": SIZE[0], "width": SIZE[1]})
        for name, polygon in objects:
            category = {"cat": 7, "road sign": 30}[name]
            note = {"id": len(notes), "image_id": 100 + place, "category_id": category, "iscrowd": 0}
            notes.append(note | {"segmentation": segmentation(polygon)})
    categories = [{"id": 30, "name": "road sign"}, {"id": 7, "name": "cat"}]
    write(root / file, {"images": images, "annotations": notes, "categories": categories})


def runs(polygon: Polygon) -> dict[str, Any]:
    """COCO's run lengths, column by column, as a list."""
    flat = mask_of(polygon).T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [-1]])))
    return {"size": list(SIZE), "counts": np.diff(np.concatenate([[0], edges])).tolist()}


def packed(polygon: Polygon) -> dict[str, Any]:
    """The same in COCO's text form."""
    counts, text = runs(polygon)["counts"], ""
    for place, count in enumerate(counts):
        value = count - counts[place - 2] if place > 2 else count
        more = True
        while more:
            part, value = value & 31, value >> 5
            more = value != -1 if part & 16 else value != 0
            text += chr((part | 32 if more else part) + 48)
    return {"size": list(SIZE), "counts": text}


def panoptic(root: Path, scene: Scene) -> None:
    images, notes = [], []
    for place, (image, objects) in enumerate(scene.items()):
        photo(root / "images" / image)
        images.append({"id": place, "file_name": image, "height": SIZE[0], "width": SIZE[1]})
        ids, segments = np.zeros(SIZE, np.uint32), []
        for number, (name, polygon) in enumerate(objects):
            code = 70000 + 300 * number
            ids[mask_of(polygon) > 0] = code
            segments.append({"id": code, "category_id": {"cat": 7, "road sign": 30}[name]})
        rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=2).astype(np.uint8)
        (root / "panoptic").mkdir(exist_ok=True)
        Image.fromarray(rgb).save(root / "panoptic" / f"{Path(image).stem}.png")
        notes.append({"image_id": place, "file_name": f"{Path(image).stem}.png", "segments_info": segments})
    categories = [{"id": 7, "name": "cat", "color": [9, 9, 200]}, {"id": 30, "name": "road sign", "color": [200, 9, 9]}]
    write(root / "panoptic.json", {"images": images, "annotations": notes, "categories": categories})


def yolo(root: Path, scene: Scene) -> None:
    for image, objects in scene.items():
        photo(root / "train" / "images" / image)
        lines = [
            " ".join([str(CLASSES.index(name)), *(f"{x / SIZE[1]:.9f} {y / SIZE[0]:.9f}" for x, y in pairs(polygon))])
            for name, polygon in objects
        ]
        write(root / "train" / "labels" / f"{Path(image).stem}.txt", "\n".join(lines))
    write(root / "data.yaml", "train: train/images\nnc: 2\nnames: ['cat', 'road sign']\n")


def cvat(root: Path, scene: Scene) -> None:
    write(root / "annotations.xml", cvat_xml(scene))
    for image in scene:
        photo(root / "images" / image)


def cvat_xml(scene: Scene) -> str:
    labels = "".join(f"<label><name>{name}</name><color>#0000ff</color></label>" for name in CLASSES)
    lines = [f"<annotations><version>1.1</version><meta><task><labels>{labels}</labels></task></meta>"]
    for place, (image, objects) in enumerate(scene.items()):
        lines.append(f'<image id="{place}" name="{image}" width="{SIZE[1]}" height="{SIZE[0]}">')
        for name, polygon in objects:
            points = ";".join(f"{x},{y}" for x, y in pairs(polygon))
            lines.append(f'<polygon label="{name}" points="{points}" z_order="0"/>')
        lines.append("</image>")
    return "\n".join([*lines, "</annotations>"])


def cvat_masks(root: Path, scene: Scene) -> None:
    xml = cvat_xml({image: [] for image in scene})
    for image, objects in scene.items():
        photo(root / "images" / image)
        shapes = ""
        for order, (name, polygon) in reversed(list(enumerate(objects))):
            flat = mask_of(polygon)[2:22, 3:30].ravel()
            edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [-1]])))
            counts = ", ".join(map(str, np.diff(np.concatenate([[0], edges]))))
            shapes += f'<mask label="{name}" rle="{counts}" left="3" top="2" width="27" height="20" z_order="{order}"/>'
        xml = xml.replace(f'name="{image}" width="{SIZE[1]}" height="{SIZE[0]}">', f'name="{image}" width="{SIZE[1]}" height="{SIZE[0]}">{shapes}')  # fmt: skip
    write(root / "annotations.xml", xml)


def supervisely(root: Path, scene: Scene, *, bitmaps: bool = False) -> None:
    for image, objects in scene.items():
        photo(root / "ds" / "img" / image)
        shapes: list[dict[str, Any]] = []
        for name, polygon in objects:
            if bitmaps:
                content = base64.b64encode(zlib.compress(png(mask_of(polygon)[2:22, 3:30]))).decode()
                bitmap = {"data": content, "origin": [3, 2]}
                shapes.append({"classTitle": name, "geometryType": "bitmap", "bitmap": bitmap})
            else:
                points = {"exterior": pairs(polygon), "interior": []}
                shapes.append({"classTitle": name, "geometryType": "polygon", "points": points})
        size = {"height": SIZE[0], "width": SIZE[1]}
        write(root / "ds" / "ann" / f"{image}.json", {"description": "", "size": size, "objects": shapes})
    write(
        root / "meta.json",
        {"classes": [{"title": "cat", "color": "#FF0000"}, {"title": "road sign", "color": "#00FF00"}]},
    )


def supervisely_bitmaps(root: Path, scene: Scene) -> None:
    supervisely(root, scene, bitmaps=True)


def via(root: Path, scene: Scene) -> None:
    content = {}
    for image, objects in scene.items():
        photo(root / image)
        regions = [_region(name, polygon) for name, polygon in objects]
        content[f"{image}123"] = {"filename": image, "size": 123, "regions": regions, "file_attributes": {}}
    write(root / "via_project.json", {"_via_settings": {}, "_via_img_metadata": content})


def via_three(root: Path, scene: Scene) -> None:
    """VIA 3: files, views and regions by their numbers, the shape's kind as the first number of its places."""
    files, views, regions = {}, {}, {}
    for place, (image, objects) in enumerate(scene.items(), 1):
        photo(root / image)
        files[str(place)] = {"fid": str(place), "fname": image, "type": 2, "loc": 1, "src": image}
        views[str(place + 10)] = {"fid_list": [str(place)]}
        for number, (name, polygon) in enumerate(objects):
            value = str(CLASSES.index(name))
            regions[f"{place}_{number}"] = {"vid": str(place + 10), "z": [], "xy": [7, *polygon], "av": {"1": value}}
    options = {str(place): name for place, name in enumerate(CLASSES)}
    content = {"project": {}, "attribute": {"1": {"aname": "kind", "options": options}}, "file": files, "view": views}
    write(root / "three.json", content | {"metadata": regions})


def via_csv(root: Path, scene: Scene) -> None:
    lines = ["#filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"]
    for image, objects in scene.items():
        photo(root / image)
        for place, (name, polygon) in enumerate(objects):
            region = _region(name, polygon)
            cells = [json.dumps(region[key]).replace('"', '""') for key in ("shape_attributes", "region_attributes")]
            lines.append(f'{image},123,"{{}}",{len(objects)},{place},"{cells[0]}","{cells[1]}"')
    write(root / "via.csv", "\n".join(lines))


def _region(name: str, polygon: Polygon) -> dict[str, Any]:
    shape = {"name": "polygon", "all_points_x": polygon[::2], "all_points_y": polygon[1::2]}
    return {"shape_attributes": shape, "region_attributes": {"class": name}}


def labelstudio(root: Path, scene: Scene, *, brush: bool = False) -> None:
    tasks = []
    for place, (image, objects) in enumerate(scene.items()):
        photo(root / image)
        results = []
        for name, polygon in objects:
            about = {"original_width": SIZE[1], "original_height": SIZE[0]}
            kind = "brushlabels" if brush else "polygonlabels"
            shape: Mapping[str, Any] = {"points": [[100 * x / SIZE[1], 100 * y / SIZE[0]] for x, y in pairs(polygon)]}
            if brush:
                shape = {"format": "rle", "rle": brush_codes(mask_of(polygon))}
            results.append({**about, "type": kind, "value": {**shape, kind: [name]}})
        data = {"image": f"/data/upload/1/1234abcd-{image}"}
        tasks.append({"id": place, "annotations": [{"result": results, "was_cancelled": False}], "data": data})
    write(root / "export.json", tasks)


def labelstudio_least(root: Path, scene: Scene) -> None:
    """The JSON-MIN export: a task's regions under the name of their tag."""
    tasks = []
    for place, (image, objects) in enumerate(scene.items()):
        photo(root / image)
        about = {"original_width": SIZE[1], "original_height": SIZE[0]}
        regions = [
            {"points": [[100 * x / SIZE[1], 100 * y / SIZE[0]] for x, y in pairs(polygon)], "polygonlabels": [name]}
            | about
            for name, polygon in objects
        ]
        tasks.append({"image": f"/data/upload/1/1234abcd-{image}", "id": place, "label": regions, "annotator": 1})
    write(root / "least.json", tasks)


def labelstudio_regions(root: Path, scene: Scene) -> None:
    """With <Labels> beside <Polygon>: a shape and its label are two results of one id."""
    labelstudio(root, scene)
    tasks = json.loads((root / "export.json").read_text())
    for task in tasks:
        results = []
        for number, one in enumerate(task["annotations"][0]["result"]):
            value = {"points": one["value"]["points"]}
            results.append(one | {"id": f"r{number}", "type": "polygon", "value": value})
            results.append(
                one | {"id": f"r{number}", "type": "labels", "value": value | {"labels": one["value"]["polygonlabels"]}}
            )
        task["annotations"][0]["result"] = results
    write(root / "export.json", tasks)


def labelstudio_brush(root: Path, scene: Scene) -> None:
    labelstudio(root, scene, brush=True)


def brush_codes(mask: np.ndarray) -> list[int]:
    """Label Studio's packed form of a mask, by runs and, for short ones, by single values."""
    flat = np.repeat(mask.ravel() * 255, 4)
    bits = f"{len(flat):032b}" + f"{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    edges = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), len(flat)]
    for place, (start, end) in enumerate(itertools.pairwise(edges)):
        if place % 3 == 2 and end - start <= 16:
            bits += "001" + f"{end - start - 1:04b}" + f"{int(flat[start]):08b}" * (end - start)
        else:
            bits += "111" + f"{end - start - 1:016b}" + f"{int(flat[start]):08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


def brush_pngs(root: Path, scene: Scene) -> None:
    tasks = []
    for place, (image, objects) in enumerate(scene.items()):
        photo(root / "images" / image)
        (root / "export").mkdir(exist_ok=True)
        for name, polygon in objects:
            (root / "export" / f"task-{place}-annotation-5-by-1-tag-{name}-0.png").write_bytes(png(mask_of(polygon)))
        tasks.append({"id": place, "image": f"/data/upload/1/1234abcd-{image}"})
    write(root / "tasks.json", tasks)


def by_folder(root: Path, scene: Scene, pattern: str = "masks/{name}/{stem}.png") -> None:
    for image, objects in scene.items():
        photo(root / "images" / image)
        for name, polygon in objects:
            path = root / pattern.format(name=name, stem=Path(image).stem)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(mask_of(polygon)))


def by_ending(root: Path, scene: Scene) -> None:
    by_folder(root, scene, "masks/{stem}_{name}.png")


def by_beginning(root: Path, scene: Scene) -> None:
    by_folder(root, scene, "masks/{name}_{stem}.png")


def colours(root: Path, scene: Scene) -> None:
    table = np.array([(0, 0, 0), (200, 30, 30), (30, 60, 220)], np.uint8)
    (root / "masks").mkdir(parents=True)
    for image, objects in scene.items():
        photo(root / "images" / image)
        Image.fromarray(table[expected(objects)]).save(root / "masks" / f"{Path(image).stem}.png")
    rows = ("background:0,0,0::", "cat:200,30,30::", "road sign:30,60,220::")
    write(root / "labelmap.txt", "\n".join(["# label:color_rgb:parts:actions", *rows]))


# The exporter of each form, and the name of its format.
EXPORTERS: dict[str, tuple[Callable[[Path, Scene], None], str]] = {
    "labelme": (labelme, "labelme"),
    "labelme masks": (labelme_masks, "labelme"),
    "coco": (coco, "coco"),
    "coco runs": (lambda root, scene: coco(root, scene, runs), "coco"),
    "coco packed": (lambda root, scene: coco(root, scene, packed), "coco"),
    "panoptic": (panoptic, "coco"),
    "yolo": (yolo, "yolo"),
    "cvat": (cvat, "cvat"),
    "cvat masks": (cvat_masks, "cvat"),
    "supervisely": (supervisely, "supervisely"),
    "supervisely bitmaps": (supervisely_bitmaps, "supervisely"),
    "via": (via, "via"),
    "via csv": (via_csv, "via"),
    "via 3": (via_three, "via"),
    "labelstudio": (labelstudio, "labelstudio"),
    "labelstudio regions": (labelstudio_regions, "labelstudio"),
    "labelstudio least": (labelstudio_least, "labelstudio"),
    "labelstudio brush": (labelstudio_brush, "labelstudio"),
    "brush pngs": (brush_pngs, "labelstudio-brush"),
    "by folder": (by_folder, "masks"),
    "by ending": (by_ending, "masks"),
    "by beginning": (by_beginning, "masks"),
    "colours": (colours, "colours"),
}
ORDERED = [name for name, (_, form) in EXPORTERS.items() if form not in ("masks", "labelstudio-brush")]
