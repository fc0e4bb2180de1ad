// Logic Apps that tell the maintenance team of alerts in Teams and by mail: one with an HTTP trigger, one that reads the
// event hub, or both. With them: their connections, a table of what was told, and the rights for that and nothing more.
// No secret is a parameter, an output or part of a file here.

targetScope = 'resourceGroup'

@description('Where all of it runs.')
param location string = resourceGroup().location

@description('First part of the names of the Logic Apps.')
@minLength(1)
@maxLength(60)
param namePrefix string = 'predictive-maintenance'

@description('Deploy the Logic App that the cloud-aggregator posts to (alerts.targets, kind webhook).')
param deployHttp bool = true

@description('Deploy the Logic App that reads the alerts from the event hub.')
param deployEventHub bool = false

@description('Id of the team, its groupId: in the link to the team in Teams.')
param teamId string

@description('Id of the channel, 19:…@thread.tacv2: in the link to the channel in Teams, with %3A and %40 decoded.')
param channelId string

@description('Addresses of the mail, separated by semicolons.')
param mailRecipients string

@description('Zone of the times in cards and mails, a name as Windows has it, for example W. Europe Standard Time.')
param timeZone string = 'UTC'

@description('Name of the connection to Teams.')
param teamsConnectionName string = '${namePrefix}-teams'

@description('Name of the connection to Office 365 Outlook.')
param office365ConnectionName string = '${namePrefix}-office365'

@description('Name of the connection to Event Hubs.')
param eventHubsConnectionName string = '${namePrefix}-eventhubs'

@description('Storage account of the table of what was told. It is made here and holds nothing else.')
@minLength(3)
@maxLength(24)
param storageAccountName string = 'pmtold${uniqueString(resourceGroup().id)}'

@description('Namespace of the event hub, if it is read.')
param eventHubNamespace string = ''

@description('Resource group of that namespace.')
param eventHubResourceGroup string = resourceGroup().name

@description('The event hub with the alerts.')
param eventHubName string = 'alerts'

@description('Consumer group of the Logic App. It is made here; nobody else may read with it.')
param consumerGroup string = 'logic-app'

@description('Address ranges that may call the HTTP trigger, for example 203.0.113.7/32. Empty: any that has the URL.')
param allowedCallerIpRanges array = []

@description('Resource id of an action group that is told when a run fails: nobody was told then. Empty: none.')
param failureActionGroupId string = ''

// Built-in roles ("Azure built-in roles" on Microsoft Learn).
var storageTableDataContributor = '0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3'

var managedApis = {
  teams: subscriptionResourceId('Microsoft.Web/locations/managedApis', location, 'teams')
  office365: subscriptionResourceId('Microsoft.Web/locations/managedApis', location, 'office365')
  eventhubs: subscriptionResourceId('Microsoft.Web/locations/managedApis', location, 'eventhubs')
}

resource claimsAccount 'Microsoft.Storage/storageAccounts@2023-05-01' = {
  name: storageAccountName
  location: location
  sku: {
    name: 'Standard_LRS'
  }
  kind: 'StorageV2'
  properties: {
    allowBlobPublicAccess: false
    // Only identities with a role, no keys.
    allowSharedKeyAccess: false
    minimumTlsVersion: 'TLS1_2'
    supportsHttpsTrafficOnly: true
  }

  resource tables 'tableServices' = {
    name: 'default'

    resource claims 'tables' = {
      name: 'alertclaims'
    }
  }
}

var claimsTableUrl = '${claimsAccount.properties.primaryEndpoints.table}${claimsAccount::tables::claims.name}'

// Both must be authorised once by a person of the tenant after the first deployment: README.md.
resource teamsConnection 'Microsoft.Web/connections@2016-06-01' = {
  name: teamsConnectionName
  location: location
  properties: {
    displayName: teamsConnectionName
    api: {
      id: managedApis.teams
    }
  }
}

resource office365Connection 'Microsoft.Web/connections@2016-06-01' = {
  name: office365ConnectionName
  location: location
  properties: {
    displayName: office365ConnectionName
    api: {
      id: managedApis.office365
    }
  }
}

resource eventHubsConnection 'Microsoft.Web/connections@2016-06-01' = if (deployEventHub) {
  name: eventHubsConnectionName
  location: location
  // The type of this resource does not list the identity's set of values.
  properties: any({
    displayName: eventHubsConnectionName
    api: {
      id: managedApis.eventhubs
    }
    parameterValueSet: {
      name: 'managedIdentityAuth'
      values: {
        namespaceEndpoint: {
          value: 'sb://${eventHubNamespace}.servicebus.windows.net/'
        }
      }
    }
  })
}

var people = {
  teams: {
    connectionId: teamsConnection.id
    connectionName: teamsConnectionName
    id: managedApis.teams
  }
  office365: {
    connectionId: office365Connection.id
    connectionName: office365ConnectionName
    id: managedApis.office365
  }
}

var common = {
  teamId: { value: teamId }
  channelId: { value: channelId }
  mailRecipients: { value: mailRecipients }
  claimsTable: { value: claimsTableUrl }
  timeZone: { value: timeZone }
}

resource httpWorkflow 'Microsoft.Logic/workflows@2019-05-01' = if (deployHttp) {
  name: '${namePrefix}-http'
  location: location
  identity: {
    type: 'SystemAssigned'
  }
  properties: {
    state: 'Enabled'
    definition: loadJsonContent('http.definition.json')
    parameters: union(common, {
      '$connections': { value: people }
    })
    accessControl: empty(allowedCallerIpRanges)
      ? null
      : {
          triggers: {
            allowedCallerIpAddresses: [for range in allowedCallerIpRanges: { addressRange: range }]
          }
        }
  }
}

resource eventHubWorkflow 'Microsoft.Logic/workflows@2019-05-01' = if (deployEventHub) {
  name: '${namePrefix}-event-hub'
  location: location
  identity: {
    type: 'SystemAssigned'
  }
  properties: {
    state: 'Enabled'
    definition: loadJsonContent('event-hub.definition.json')
    parameters: union(common, {
      eventHubName: { value: eventHubName }
      consumerGroup: { value: consumerGroup }
      '$connections': {
        value: union(people, {
          eventhubs: {
            connectionId: eventHubsConnection.id
            connectionName: eventHubsConnectionName
            connectionProperties: {
              authentication: {
                type: 'ManagedServiceIdentity'
              }
            }
            id: managedApis.eventhubs
          }
        })
      }
    })
  }
}

// Rows of this one table.
resource httpMayClaim 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (deployHttp) {
  name: guid(claimsAccount::tables::claims.id, '${namePrefix}-http', storageTableDataContributor)
  scope: claimsAccount::tables::claims
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', storageTableDataContributor)
    principalId: httpWorkflow!.identity.principalId
    principalType: 'ServicePrincipal'
  }
}

resource eventHubMayClaim 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (deployEventHub) {
  name: guid(claimsAccount::tables::claims.id, '${namePrefix}-event-hub', storageTableDataContributor)
  scope: claimsAccount::tables::claims
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', storageTableDataContributor)
    principalId: eventHubWorkflow!.identity.principalId
    principalType: 'ServicePrincipal'
  }
}

module eventHubAccess 'event-hub-access.bicep' = if (deployEventHub) {
  name: '${namePrefix}-event-hub-access'
  scope: resourceGroup(eventHubResourceGroup)
  params: {
    namespaceName: eventHubNamespace
    eventHubName: eventHubName
    consumerGroup: consumerGroup
    principalId: eventHubWorkflow!.identity.principalId
  }
}

resource httpRunsFail 'Microsoft.Insights/metricAlerts@2018-03-01' = if (deployHttp && !empty(failureActionGroupId)) {
  name: '${namePrefix}-http-runs-fail'
  location: 'global'
  properties: {
    description: 'A run of the Logic App failed: somebody was not told of an alert. Mend the cause, submit the run again.'
    severity: 1
    enabled: true
    scopes: [
      httpWorkflow.id
    ]
    evaluationFrequency: 'PT1M'
    windowSize: 'PT5M'
    criteria: {
      'odata.type': 'Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria'
      allOf: [
        {
          name: 'failed runs'
          criterionType: 'StaticThresholdCriterion'
          metricName: 'RunsFailed'
          operator: 'GreaterThan'
          threshold: 0
          timeAggregation: 'Total'
        }
      ]
    }
    actions: [
      {
        actionGroupId: failureActionGroupId
      }
    ]
  }
}

resource eventHubRunsFail 'Microsoft.Insights/metricAlerts@2018-03-01' = if (deployEventHub && !empty(failureActionGroupId)) {
  name: '${namePrefix}-event-hub-runs-fail'
  location: 'global'
  properties: {
    description: 'A run of the Logic App failed: somebody was not told of an alert. Mend the cause, submit the run again.'
    severity: 1
    enabled: true
    scopes: [
      eventHubWorkflow.id
    ]
    evaluationFrequency: 'PT1M'
    windowSize: 'PT5M'
    criteria: {
      'odata.type': 'Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria'
      allOf: [
        {
          name: 'failed runs'
          criterionType: 'StaticThresholdCriterion'
          metricName: 'RunsFailed'
          operator: 'GreaterThan'
          threshold: 0
          timeAggregation: 'Total'
        }
      ]
    }
    actions: [
      {
        actionGroupId: failureActionGroupId
      }
    ]
  }
}

@description('Name of the Logic App with the HTTP trigger. Its URL carries a signature and is no output: README.md tells how to fetch it.')
output httpWorkflowName string = deployHttp ? httpWorkflow.name : ''

@description('Name of the Logic App that reads the event hub.')
output eventHubWorkflowName string = deployEventHub ? eventHubWorkflow.name : ''
