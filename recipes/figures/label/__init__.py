"""A page on which a person says of clips whether their texts and their sounds fit."""
