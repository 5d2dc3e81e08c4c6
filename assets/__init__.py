"""Small models and data that ship with the project, and the scripts that made them."""

from lightning_posttrain import check_siblings

check_siblings(__name__)
