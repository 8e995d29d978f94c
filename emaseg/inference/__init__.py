"""From a picture to its label map, and to the files that show it.

Room: inference. protocols.py is the published way of predicting one image (whole, windows, scales, mirrored), tiles.py the
way that fits into memory; predict.py the verb; image_inputs.py what it reads, prediction.py and outputs.py what it makes,
attention_maps.py and attention_sheet.py what the network attended to. The network made fast is in engine/.
"""
