from .roofline import roofline
