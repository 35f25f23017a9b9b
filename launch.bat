@echo off
rem Starts lycogui; the first time it makes .venv and installs everything.
rem   launch.bat            the app, in a window of its own
rem   launch.bat demo       the whole story without a screen
setlocal
cd /d "%~dp0"
set CHECK=import sys; sys.exit(not (3, 11) ^<= sys.version_info[:2] ^<= (3, 14))
for %%P in ("py -3.12" "py -3.13" "py -3.11" "py -3.14" "python" "python3") do (
  %%~P -c "%CHECK%" >nul 2>nul
  if not errorlevel 1 (
    %%~P lycogui\install.py %*
    if errorlevel 1 pause
    exit /b
  )
)
echo lycogui needs Python 3.11 to 3.14, and none was found.
echo Install one from https://www.python.org/downloads/ and start this again.
pause
exit /b 1
