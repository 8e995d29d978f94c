"""From a picture to its label map, and to the files that show it.

Room: inference. protocols.py is the published way of predicting one image (whole, windows, scales, mirrored), tiles.py the
way that fits into memory; predict.py predicts one picture, predict_files.py many, and writes their files; image_inputs.py
finds them, prediction.py and outputs.py are what is made, attention_maps.py and attention_sheet.py what the network attended to. The network made fast is in engine/.
"""
