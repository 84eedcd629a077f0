"""Tools for `glmrun chat --tools examples/weather.py`: documented, typed functions that the model may call.

No service is asked: the numbers are made from the name of the city, so that the example works without a network.
"""

import zlib
from typing import Literal

_SKIES = ("sunny", "cloudy", "rainy", "windy")


def get_weather(city: str, unit: Literal["celsius", "fahrenheit"] = "celsius") -> dict[str, str | int]:
    """Get the weather of a city.

    Args:
        city: Name of the city.
        unit: Unit of the temperature.
    """
    seed = zlib.crc32(city.casefold().encode())
    celsius = seed % 35 - 5
    temperature = celsius if unit == "celsius" else round(celsius * 9 / 5 + 32)
    return {"city": city, "temperature": temperature, "unit": unit, "sky": _SKIES[seed // 35 % len(_SKIES)]}
