"""A toolkit for score-based generative modelling in continuous time."""
