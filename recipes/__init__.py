"""The shipped recipes: one complete TOML file for each published row; installed as emaseg.recipes."""
