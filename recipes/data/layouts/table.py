"""The layouts that are recognised, in this order. A new one is a file beside this one, and a line here."""

from recipes.data.layouts import audioset, esc50, hmdb51, howto100m, kinetics, msrvtt, ucf101, youcook2, youtube8m

LAYOUTS = (
    howto100m.LAYOUT,
    audioset.LAYOUT,
    ucf101.LAYOUT,
    hmdb51.LAYOUT,
    esc50.LAYOUT,
    msrvtt.LAYOUT,
    youcook2.LAYOUT,
    youtube8m.LAYOUT,
    audioset.LABELLED,
    kinetics.LAYOUT,
)
