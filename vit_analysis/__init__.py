"""Do your Vision Transformer and your CNN see alike? Every figure of Raghu et al. (NeurIPS 2021), for your models.

Each module is one idea and is imported by name: ``from vit_analysis import cka, models, plot``. Nothing is imported here, so
``import vit_analysis`` costs nothing and ``python -m vit_analysis.cka`` loads that module once.
"""

__version__ = "0.1.0"
