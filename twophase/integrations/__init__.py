"""What other packages need to train in two phases; each module imports the package it is for."""
