#Requires -Version 5.1

# Named mutexes of baton for PowerShell.
#
#   Import-Module ./Baton.psm1
#   Use-BatonMutex -Name log { Get-Date | Add-Content /var/log/deploy.log }
#
# $env:BATON names the program; default: baton.
#
# - A mutex is for processes, and it is not re-entrant as System.Threading.Mutex is: what this
#   PowerShell has locked already is refused at once, unless both are shared. That is so for its
#   threads too (ForEach-Object -Parallel, Start-ThreadJob); Start-Job is a process of its own.
# - It is free when it is unlocked, or when this PowerShell has ended, however it ended.
# - What could not be locked is an error that ends the script, whatever $ErrorActionPreference is in
#   here; a script that prefers SilentlyContinue goes on behind Use-BatonMutex, but the block did not run.
#
# How it is tested: tests/clients/powershell parses it; tests/share.rs checks that each function has
# help with examples, and runs `baton mutex acquire` and `release` with the words and options that
# stand here. The PowerShell itself is not run there, so there is little of it.

Set-StrictMode -Version 3.0

# Runs baton and returns what it prints; what it says on standard error is shown.
function Invoke-Baton {
    param([string[]] $Arguments, [string] $Failed)
    # A failure is told below, with the mutex's name. What baton says while it waits is none, though
    # older PowerShells make it one where standard error is redirected.
    $ErrorActionPreference = 'Continue'
    $PSNativeCommandUseErrorActionPreference = $false
    $program = if ($env:BATON) { $env:BATON } else { 'baton' }
    # Outside of a try, what can't be started ends this statement only: then the status below would be
    # that of an earlier program.
    try {
        $printed = & $program @Arguments
    } catch {
        throw "$Failed ($($_.Exception.Message))"
    }
    if ($LASTEXITCODE -ne 0) {
        throw "$Failed (baton: exit status $LASTEXITCODE)"
    }
    $printed
}

function Lock-BatonMutex {
    <#
    .SYNOPSIS
    Acquires a named mutex that all processes of the machine share.

    .DESCRIPTION
    Waits in order of arrival. Returns an object with Name and Token for Unlock-BatonMutex. The token
    is a fencing number as well: it only grows. An error is thrown when the mutex was not obtained in
    time.

    .PARAMETER Name
    The mutex: A-Z a-z 0-9 . _ -

    .PARAMETER Timeout
    How long to wait, such as 00:05:00; 0 does not wait at all. Default: as long as it takes.

    .PARAMETER Shared
    Holds it together with others that are shared.

    .PARAMETER Reason
    Why, for those who wait behind.

    .EXAMPLE
    $mutex = Lock-BatonMutex -Name iis-metabase -Timeout 00:05:00
    try { ./configure-site.ps1 } finally { Unlock-BatonMutex $mutex }

    .EXAMPLE
    $mutex = Lock-BatonMutex -Name packages -Shared -Reason 'reads the list'
    #>
    [CmdletBinding()]
    param(
        [Parameter(Mandatory = $true, Position = 0)]
        [ValidatePattern('^[A-Za-z0-9_][A-Za-z0-9._-]*$')]
        [string] $Name,

        [TimeSpan] $Timeout,

        [switch] $Shared,

        [string] $Reason
    )
    # Whatever the script prefers: nobody goes on without the mutex.
    $ErrorActionPreference = 'Stop'
    $arguments = @('mutex', 'acquire', $Name, '--for-pid', "$PID")
    if ($PSBoundParameters.ContainsKey('Timeout')) {
        if ($Timeout.Ticks -eq 0) {
            $arguments += '--no-wait'
        } elseif ($Timeout.TotalMilliseconds -lt 1) {
            # A bare number counts 100 ns.
            throw "timeout $Timeout is too short; it is written as 00:00:30"
        } else {
            $arguments += @('--timeout', "$([long] $Timeout.TotalMilliseconds)ms")
        }
    }
    if ($Shared) {
        $arguments += '--shared'
    }
    if ($Reason) {
        $arguments += "--reason=$Reason"
    }
    $token = Invoke-Baton -Arguments $arguments -Failed "mutex '$Name' was not acquired"
    [PSCustomObject] @{ Name = $Name; Token = [long] $token }
}

function Unlock-BatonMutex {
    <#
    .SYNOPSIS
    Gives back a mutex that Lock-BatonMutex has acquired.

    .DESCRIPTION
    When it returns the next one may have the mutex. An error is thrown when it was given back already.

    .PARAMETER Mutex
    What Lock-BatonMutex returned.

    .EXAMPLE
    Unlock-BatonMutex $mutex
    #>
    [CmdletBinding()]
    param(
        [Parameter(Mandatory = $true, Position = 0, ValueFromPipeline = $true)]
        [PSCustomObject] $Mutex
    )
    process {
        $ErrorActionPreference = 'Stop'
        $arguments = @('mutex', 'release', $Mutex.Name, "$($Mutex.Token)")
        $null = Invoke-Baton -Arguments $arguments -Failed "mutex '$($Mutex.Name)' was not released"
    }
}

function Use-BatonMutex {
    <#
    .SYNOPSIS
    Runs a script block while a named mutex is held.

    .DESCRIPTION
    Acquires the mutex as Lock-BatonMutex does, runs the block, and gives the mutex back, also when the
    block throws. Returns what the block returns.

    .PARAMETER Name
    The mutex: A-Z a-z 0-9 . _ -

    .PARAMETER ScriptBlock
    What to run.

    .PARAMETER Timeout
    How long to wait, such as 00:05:00; 0 does not wait at all. Default: as long as it takes.

    .PARAMETER Shared
    Holds it together with others that are shared.

    .PARAMETER Reason
    Why, for those who wait behind.

    .EXAMPLE
    Use-BatonMutex -Name log { Get-Date | Add-Content /var/log/deploy.log }

    .EXAMPLE
    Use-BatonMutex -Name iis-metabase -Timeout 00:05:00 { ./configure-site.ps1 }
    #>
    [CmdletBinding()]
    param(
        [Parameter(Mandatory = $true, Position = 0)]
        [string] $Name,

        [Parameter(Mandatory = $true, Position = 1)]
        [scriptblock] $ScriptBlock,

        [TimeSpan] $Timeout,

        [switch] $Shared,

        [string] $Reason
    )
    # As in Lock-BatonMutex. The block has the preference of the place where it stands.
    $ErrorActionPreference = 'Stop'
    $wish = @{ Name = $Name; Shared = $Shared; Reason = $Reason }
    if ($PSBoundParameters.ContainsKey('Timeout')) {
        $wish.Timeout = $Timeout
    }
    $mutex = $null
    try {
        # In here, so that no Ctrl-C comes between.
        $mutex = Lock-BatonMutex @wish
        & $ScriptBlock
    } finally {
        if ($null -ne $mutex) {
            Unlock-BatonMutex $mutex
        }
    }
}

Export-ModuleMember -Function @('Use-BatonMutex', 'Lock-BatonMutex', 'Unlock-BatonMutex')
