"""ChefFusion: recipes and food images, both ways."""
