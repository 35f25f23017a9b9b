"""How it looks: Gradio's base theme in our colours, and where our style sheet is."""

from __future__ import annotations

import gradio as gr

from lycoris.config import ASSETS

CSS = ASSETS / "theme.css"
ICON = ASSETS / "icon.svg"


def make() -> gr.themes.Base:
    """Teal for what can be done, zinc for the rest; system fonts, nothing fetched from outside."""
    fonts = [gr.themes.Font(name) for name in ("Inter", "system-ui", "sans-serif")]
    mono = [gr.themes.Font(name) for name in ("ui-monospace", "monospace")]
    theme = gr.themes.Base(primary_hue=gr.themes.colors.teal, neutral_hue=gr.themes.colors.zinc,
                           font=fonts, font_mono=mono, text_size="sm", spacing_size="sm",
                           radius_size="md")
    return theme.set(
        body_text_color_subdued="*neutral_500", body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500", block_info_text_color_dark="*neutral_400",
        block_label_text_color="*neutral_700", block_title_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200", block_title_text_color_dark="*neutral_200",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        color_accent="*primary_600",
        checkbox_background_color_selected="*primary_600",
        input_background_fill="white", input_background_fill_dark="*neutral_800",
        input_border_width="1px", border_color_primary="*neutral_200",
        border_color_primary_dark="*neutral_700")
