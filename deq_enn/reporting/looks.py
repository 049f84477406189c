"""Every figure draws a network in the same look, which is set here."""

# a family has one colour; its DEQ is solid, the matched network dashed, the unmatched one dotted
LOOKS = {
    "inn": ("C0", "-", "ReLU-DEQ"),
    "l_relu_enn": ("C0", "--", "matched L-ReLU-ENN"),
    "relu_enn": ("C0", ":", "unmatched ReLU-ENN"),
    "tanh_inn": ("C1", "-", "tanh-DEQ"),
    "h_tanh_enn": ("C1", "--", "matched hard-tanh-ENN"),
    "tanh_enn": ("C1", ":", "unmatched tanh-ENN"),
}
